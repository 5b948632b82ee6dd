// Package daemon turns changes of policy, sets, containers and kernel state
// into commits: it joins the pure packages with the drivers, keeps what is in
// force, and answers the control socket. It never decides whether traffic
// passes; policy does.
package daemon
