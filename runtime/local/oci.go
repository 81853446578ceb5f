package local

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/invarhq/invar/fault"
	"github.com/invarhq/invar/instance"
	"github.com/invarhq/invar/runtime"
)

// defaultPIDs bounds the processes of an instance whose spec says nothing: a fork bomb stays its own.
const defaultPIDs = 4096

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// build makes all that an instance needs before its process, and returns its OCI runtime configuration.
func (h *Host) build(_ context.Context, s runtime.Spec) (json.RawMessage, error) {
	if err := h.restore(s.Root); err != nil {
		return nil, err
	}
	rootDir, err := h.roots.mounted(s.Root)
	if err != nil {
		return nil, err
	}
	tree, err := h.trees.at(s.Root, rootDir, points(s))
	if err != nil {
		return nil, err
	}
	who, err := lookupUser(rootDir, s.User)
	if err != nil {
		return nil, err
	}
	if err := lookProgram(rootDir, s); err != nil {
		return nil, err
	}
	binds, err := h.writeFiles(s, rootDir, who)
	if err != nil {
		return nil, err
	}
	volumes, err := h.makeVolumes(s, rootDir, who)
	if err != nil {
		return nil, err
	}
	ns, err := h.nets.pin(string(s.Identity.ID))
	if err != nil {
		return nil, err
	}
	spec := specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: tree, Readonly: true},
		Hostname: hostname(s),
		Process:  ociProcess(s, who),
		Mounts:   slices.Concat(baseMounts(), sortMounts(slices.Concat(binds, scratchMounts(s), volumes))),
		Linux:    h.ociLinux(s, ns),
	}
	if h.features.Seccomp.OK && s.Isolation == "" {
		if spec.Linux.Seccomp, err = seccompProfile(&spec); err != nil {
			return nil, err
		}
	}
	return json.Marshal(spec)
}

// hostname is the ID, as far as the kernel takes it.
func hostname(s runtime.Spec) string {
	id := string(s.Identity.ID)
	return strings.TrimRight(id[:min(len(id), 63)], "-")
}

// environment is the spec's, with a PATH.
func environment(s runtime.Spec) (env []string, path string) {
	for _, kv := range s.Env {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			return slices.Clone(s.Env), p
		}
	}
	return append(slices.Clone(s.Env), "PATH="+defaultPath), defaultPath
}

// lookProgram refuses a command that the root does not have. One that lies in a volume, or is named relative to the working
// directory, is looked for when it is started.
func lookProgram(rootDir string, s runtime.Spec) error {
	name := s.Args[0]
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		_, search := environment(s)
		for _, dir := range strings.Split(search, ":") {
			candidates = append(candidates, path.Join(dir, name))
		}
	} else if !path.IsAbs(name) {
		return nil
	}
	for _, c := range candidates {
		if slices.ContainsFunc(s.Volumes, func(v runtime.Volume) bool { return strings.HasPrefix(c, v.Path+"/") }) {
			return nil
		}
		_, info, err := locate(rootDir, c)
		if err == nil && info != nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return nil
		}
	}
	return fault.Errorf(fault.Invalid, "args: the root has no program %q", name)
}

// maxFiles is how many files a process may open, where the machine lets it: enough for a server, and not so many that programs
// which close all of them at their start take seconds.
const maxFiles = 1 << 16

// rlimits don't depend on who started the server: that many files, and no core dumps, which could hold secrets.
func rlimits() []specs.POSIXRlimit {
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		n := min(files.Max, maxFiles)
		limits = append(limits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Hard: n, Soft: n})
	}
	return limits
}

func ociProcess(s runtime.Spec, who user) *specs.Process {
	env, _ := environment(s)
	p := &specs.Process{
		Args:            s.Args,
		Env:             env,
		Cwd:             s.WorkDir,
		User:            specs.User{UID: uint32(who.uid), GID: uint32(who.gid)},
		Capabilities:    &specs.LinuxCapabilities{},
		NoNewPrivileges: true,
		Rlimits:         rlimits(),
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	for _, g := range who.groups {
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
	}
	return p
}

// baseMounts are of every instance. /dev is read-only once its six devices are there; there is no /sys, which can't be mounted in
// a user namespace that does not own the network namespace.
func baseMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k", "ro"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
	}
}

func scratchMounts(s runtime.Spec) []specs.Mount {
	var out []specs.Mount
	for _, t := range s.Scratches {
		mode := t.Mode
		if mode == 0 {
			mode = 0o1777
		}
		options := []string{"nosuid", "nodev", "noexec", fmt.Sprintf("mode=%o", mode)}
		if t.SizeBytes > 0 {
			options = append(options, fmt.Sprintf("size=%d", t.SizeBytes))
		}
		out = append(out, specs.Mount{Destination: t.Path, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	return out
}

func bind(from, to string, options ...string) specs.Mount {
	return specs.Mount{Destination: to, Type: "bind", Source: from, Options: append([]string{"bind", "nosuid", "nodev"}, options...)}
}

// sortMounts puts what is mounted inside another mount after it.
func sortMounts(list []specs.Mount) []specs.Mount {
	slices.SortStableFunc(list, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return list
}

// cgroupParent is the group of all instances of this host.
func (h *Host) cgroupParent() string { return "/invar-" + filepath.Base(h.run) }

// group is the cgroup of an instance, in each hierarchy.
func (h *Host) group(id instance.ID) string { return h.cgroupParent() + "/" + string(id) }

func (h *Host) ociLinux(s runtime.Spec, netns string) *specs.Linux {
	l := &specs.Linux{
		CgroupsPath: h.group(s.Identity.ID),
		Resources:   h.resources(s),
		MaskedPaths: []string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
			"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
			{Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace, Path: netns},
		},
	}
	if h.features.userNamespaces() {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		l.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: UIDBase, Size: UIDSize}}
		l.GIDMappings = l.UIDMappings
	}
	return l
}

// resources are the limits, and only those that the machine can enforce.
func (h *Host) resources(s runtime.Spec) *specs.LinuxResources {
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if !h.features.Limits.OK {
		return r
	}
	pids := s.PIDs
	if pids == 0 {
		pids = defaultPIDs
	}
	r.Pids = &specs.LinuxPids{Limit: &pids}
	if s.CPUMillis > 0 {
		period := uint64(100_000)
		quota := s.CPUMillis * 100
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if s.MemoryBytes > 0 {
		limit := s.MemoryBytes
		r.Memory = &specs.LinuxMemory{Limit: &limit}
		if h.features.Swap.OK {
			r.Memory.Swap = &limit // memory and swap together: no swap
		}
	}
	return r
}

// seccompProfile is moby's default for processes without capabilities. Only the native architecture is let in: the filter of three
// takes four times as long to make.
func seccompProfile(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	p, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("loading the default seccomp profile: %w", err))
	}
	p.Architectures = nil
	return p, nil
}
