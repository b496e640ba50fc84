package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"gpuvirt/api"
	"gpuvirt/config"
)

// settings are the configuration of a daemon that runs. SIGHUP has it read anew; what
// cannot be used changes nothing.
type settings struct {
	load  func() (config.Loaded, error)
	apply func(config.Config) error // as far as it can be; the error tells what is as it was
	log   *slog.Logger

	mu     sync.Mutex
	loaded config.Loaded
	// pending is the configuration as it stood in the files at the last reload; nil: there was
	// none. What of it differs takes a restart.
	pending *config.Config
}

// hangups delivers each SIGHUP from now to the end of the process, which is never ended by
// one: neither while it starts, before it has read its store, nor while it ends.
func hangups() <-chan os.Signal {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	return hup
}

// follow reads the configuration anew for each SIGHUP, from when the daemon is ready until
// ctx ends: systemd takes the end of a reload for that it is.
func (s *settings) follow(ctx context.Context, ready <-chan struct{}, hup <-chan os.Signal) {
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			s.reload()
		}
	}
}

// reload takes over what a daemon that runs can take over, and says what it cannot.
func (s *settings) reload() {
	notifyReloading()
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }()
	next, err := s.load()
	if err != nil {
		s.log.Error("the configuration is not reloaded", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var live, restart []string
	for _, d := range config.Differ(s.loaded.Config, next.Config) {
		values := d.Values(next.Config)
		if !d.Live {
			restart = append(restart, d.Key)
			continue
		}
		live = append(live, d.Key)
		if err := d.Set(&s.loaded.Config, values...); err != nil {
			s.log.Error("a setting is not taken over", "setting", d.Key, "err", err)
		}
	}
	for _, d := range config.Settings() {
		if d.Live {
			s.loaded.Origin[d.Key] = next.Origin[d.Key]
		}
	}
	s.loaded.Files, s.pending = next.Files, &next.Config
	if err := s.apply(s.loaded.Config); err != nil {
		s.log.Error("a part of the configuration cannot be used, and what it replaces stays in use", "err", err)
	}
	s.log.Info("the configuration is reloaded", "changed", strings.Join(live, " "), "needs_restart", strings.Join(restart, " "))
}

// notifyReloading tells systemd when the reload began, as Type=notify-reload wants it.
func notifyReloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
		_, _ = daemon.SdNotify(false, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
	}
}

// list is what holds now, for clients.
func (s *settings) list() api.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := api.Settings{Files: append([]string{}, s.loaded.Files...), Items: []api.Setting{}}
	for _, d := range config.Settings() {
		item := api.Setting{
			Key: d.Key, Values: append([]string{}, d.Values(s.loaded.Config)...), Origin: s.loaded.Origin[d.Key], Reload: d.Live,
			Description: strings.ReplaceAll(d.Doc, "\n", " "),
		}
		if s.pending != nil && !d.Live {
			if next := d.Values(*s.pending); !slices.Equal(next, item.Values) {
				item.AfterRestart = append([]string{}, next...)
			}
		}
		out.Items = append(out.Items, item)
	}
	return out
}
