// Command paths turns the list of ways that a packet can take into the table of
// docs/paths.md and the picture beside it. It never looks at a kernel: that what
// it lists is so, the tests show that it names.
//
//	go run ./integration/paths
package main
