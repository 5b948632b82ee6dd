// Package confine turns a process that has begun its work into one that can do
// no more than that work needs. It never gives anything back.
package confine
