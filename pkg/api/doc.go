// Package api turns calls on the control socket into Go calls, and holds the
// JSON that nftfw prints. It never decides anything and never touches the
// kernel.
package api
