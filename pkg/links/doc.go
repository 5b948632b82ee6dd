// Package links turns the kernel's rtnetlink messages into a list of the links
// of one network namespace and, for the ports of bridges, the container
// namespace that each leads into. It never changes a link.
package links
