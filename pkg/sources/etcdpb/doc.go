// Package etcdpb holds the messages of etcd's API that pkg/sources speaks, and
// of those only the fields that it uses. etcd.pb.go is made from etcd.proto by
// `make proto`.
package etcdpb
