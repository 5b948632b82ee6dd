// Package nft turns a ruleset.Table into the kernel's table of that name. It
// never decides what a table says, and never touches another table.
//
// Diff compares what the kernel holds (Observe) or is known to hold (StateOf)
// with what it should hold and gives a Plan; Commit sends a Plan as one
// netlink batch, which the kernel takes whole or not at all; Monitor tells
// when somebody else changed the table.
//
// Expressions are those of github.com/google/nftables/expr. Batches and dumps
// are this package's own, over github.com/mdlayher/netlink: that library's
// Conn drops expressions that it does not know from the rules it reads, selects
// on the descriptor (which must then be below 1024), and waits for an answer by
// asking whether one is there.
//
// Be aware:
//   - Order within the table is not compared: chains, and sets, may be listed in
//     another order than Table has them after incremental changes.
//   - What the kernel counts (counters, limits) starts again when the rules of
//     a chain change or the table is replaced.
//   - Where elements of a set expire while it is read, others may be overlooked if
//     the set takes several messages: the kernel counts elements to know how far it
//     is. Diff then adds them, which does no harm.
//   - Kernels count timeouts in milliseconds or coarser; expiries that differ by
//     less than two seconds from an observed state are taken as equal.
package nft
