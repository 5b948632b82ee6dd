// Package sockets lists the TCP sockets of a network namespace.
package sockets
