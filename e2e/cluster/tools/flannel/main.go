// flannel-udp runs Flannel's udp backend between nodes that are known beforehand, to measure against:
//
//	flannel-udp -iface eth0 -network 10.80.0.0/16 -subnet 10.80.1.0/24 -peer 10.80.2.0/24=192.0.2.2
//
// The backend is Flannel's own, with its C proxy. Only where subnets come from is different: flanneld asks etcd or the API
// server, and links every cloud's library for that.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/udp"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
)

// fixed is a subnet.Manager whose leases never change.
type fixed struct {
	subnet.Manager
	own  lease.Lease
	peer lease.Lease
}

func (f *fixed) AcquireLease(context.Context, *lease.LeaseAttrs) (*lease.Lease, error) {
	return &f.own, nil
}

func (f *fixed) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	receiver <- []lease.LeaseWatchResult{{Snapshot: []lease.Lease{f.own, f.peer}}}
	<-ctx.Done()
	close(receiver)
	return ctx.Err()
}

func network(text string) (ip.IP4Net, error) {
	_, parsed, err := net.ParseCIDR(text)
	if err != nil {
		return ip.IP4Net{}, err
	}
	return ip.FromIPNet(parsed), nil
}

func leaseOf(subnet, address string) (lease.Lease, error) {
	parsed, err := network(subnet)
	public := net.ParseIP(address)
	if err == nil && public == nil {
		err = fmt.Errorf("%q is no address", address)
	}
	if err != nil {
		return lease.Lease{}, err
	}
	attributes := lease.LeaseAttrs{PublicIP: ip.FromIP(public), BackendType: "udp"}
	return lease.Lease{EnableIPv4: true, Subnet: parsed, Attrs: attributes}, nil
}

func run() error {
	iface := flag.String("iface", "eth0", "the link to the other node")
	whole := flag.String("network", "", "what all nodes share")
	own := flag.String("subnet", "", "this node's share")
	peer := flag.String("peer", "", "the other's share and its address, SUBNET=ADDRESS")
	flag.Parse()
	link, err := net.InterfaceByName(*iface)
	if err != nil {
		return err
	}
	addresses, err := link.Addrs()
	if err != nil || len(addresses) == 0 {
		return fmt.Errorf("%s has no address: %v", *iface, err)
	}
	address, _, err := net.ParseCIDR(addresses[0].String())
	if err != nil {
		return err
	}
	shared, err := network(*whole)
	if err != nil {
		return err
	}
	manager := &fixed{}
	if manager.own, err = leaseOf(*own, address.String()); err != nil {
		return err
	}
	share, at, _ := strings.Cut(*peer, "=")
	if manager.peer, err = leaseOf(share, at); err != nil {
		return err
	}
	external := &backend.ExternalInterface{Iface: link, IfaceName: *iface, IfaceAddr: address, ExtAddr: address}
	flannel, err := udp.New(manager, external)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var wait sync.WaitGroup
	config := &subnet.Config{EnableIPv4: true, Network: shared, BackendType: "udp"}
	running, err := flannel.RegisterNetwork(ctx, &wait, config)
	if err != nil {
		return err
	}
	running.Run(ctx)
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "flannel-udp:", err)
		os.Exit(1)
	}
}
