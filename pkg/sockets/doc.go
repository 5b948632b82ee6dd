// Package sockets lists the TCP sockets of a network namespace, and says who holds a
// Unix socket.
package sockets
