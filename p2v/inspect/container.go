package inspect

import (
	"cmp"
	"encoding/json"
	"path"
	"slices"
	"strings"

	"gpuvirt/p2v/report"
)

// A container is one that runs or could, with what else is needed of it here.
type container struct {
	report.Workload
	env     []string
	labels  map[string]string
	devices []string
	binds   []bind
}

// A bind is a folder of the host that a container sees elsewhere.
type bind struct{ from, to string }

// wants reports whether a container asks for GPUs.
func (c container) wants() bool { return len(c.GPUs) > 0 }

// containers reads what the runtimes have written of their containers. It does not ask the
// runtimes: podman and nerdctl write even when they only list, and these files also tell of
// containers while the daemon is down.
func (s *scene) containers() []container {
	all := s.docker()
	have := func(id string) bool {
		return slices.ContainsFunc(all, func(c container) bool { return c.ID == id })
	}
	for _, c := range append(s.containerd(), s.podman()...) {
		if !have(c.ID) {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b container) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return all
}

// unreadable notes a folder that is there and may not be looked into.
func (s *scene) folder(what, dir string) []string {
	names, err := s.tree.list(dir)
	if err != nil && s.tree.exists(dir) {
		s.miss("containers", "%s: %s", what, cause(err))
	}
	return names
}

func (s *scene) object(file string, into any) bool {
	text, err := s.tree.read(file, large)
	return err == nil && json.Unmarshal([]byte(text), into) == nil
}

type dockerDevice struct {
	Driver       string
	Count        int
	DeviceIDs    []string
	Capabilities [][]string
}

// docker reads Docker's own files; without the right to, it asks its daemon, which whoever
// is in its group may.
func (s *scene) docker() []container {
	data := "var/lib/docker"
	var set struct {
		DataRoot string `json:"data-root"`
		Graph    string `json:"graph"`
	}
	if s.object("etc/docker/daemon.json", &set) && set.DataRoot+set.Graph != "" {
		data = cmp.Or(set.DataRoot, set.Graph)
	}
	dir := path.Join(data, "containers")
	if _, err := s.tree.list(dir); err != nil {
		return s.askDocker()
	}
	var out []container
	for _, name := range s.folder("docker", dir) {
		var c dockerContainer
		if !s.object(path.Join(dir, name, "config.v2.json"), &c) || c.ID == "" {
			continue
		}
		_ = s.object(path.Join(dir, name, "hostconfig.json"), &c.HostConfig)
		out = append(out, c.container())
	}
	return out
}

// A dockerContainer is as in Docker's file and as in its answer, which nearly agree.
type dockerContainer struct {
	ID     string
	Name   string
	Config struct {
		Image  string
		Env    []string
		Labels map[string]string
	}
	State struct {
		Running, Paused, Restarting bool
		Status                      string
	}
	MountPoints map[string]struct{ Source, Destination string }
	Mounts      []struct{ Source, Destination string }
	HostConfig  struct {
		Runtime        string
		RestartPolicy  struct{ Name string }
		DeviceRequests []dockerDevice
		Devices        []struct{ PathOnHost string }
	}
}

func (s *scene) askDocker() []container {
	if s.tools.find("docker") == "" || !s.tree.exists("run/docker.sock") {
		if s.tree.exists("var/lib/docker") {
			s.miss("containers", "docker: its files may not be read")
		}
		return nil
	}
	ids, err := s.tools.out(s.ctx, "docker", "ps", "-aq", "--no-trunc")
	if err != nil {
		s.miss("containers", "docker: %s", err)
		return nil
	}
	all := strings.Fields(ids)
	all = all[:min(len(all), 500)]
	if len(all) == 0 {
		return nil
	}
	text, err := s.tools.out(s.ctx, "docker", append([]string{"inspect"}, all...)...)
	var list []dockerContainer
	if err == nil {
		err = json.Unmarshal([]byte(text), &list)
	}
	if err != nil {
		s.miss("containers", "docker: %s", err)
	}
	var out []container
	for _, c := range list {
		out = append(out, c.container())
	}
	return out
}

func (d dockerContainer) container() container {
	c := container{env: d.Config.Env, labels: d.Config.Labels}
	c.ID, c.Name, c.Image, c.Runtime = d.ID, strings.TrimPrefix(d.Name, "/"), d.Config.Image, "docker"
	c.Restart = d.HostConfig.RestartPolicy.Name
	switch c.State = d.State.Status; {
	case c.State != "":
	case d.State.Paused:
		c.State = "paused"
	case d.State.Restarting:
		c.State = "restarting"
	case d.State.Running:
		c.State = "running"
	default:
		c.State = "exited"
	}
	for _, m := range d.MountPoints {
		d.Mounts = append(d.Mounts, struct{ Source, Destination string }{m.Source, m.Destination})
	}
	for _, m := range d.Mounts {
		c.binds = append(c.binds, bind{m.Source, m.Destination})
	}
	for _, r := range d.HostConfig.DeviceRequests {
		c.GPUs = append(c.GPUs, r.gpus()...)
	}
	for _, dev := range d.HostConfig.Devices {
		c.devices = append(c.devices, dev.PathOnHost)
	}
	c.finish(d.HostConfig.Runtime == "nvidia")
	return c
}

func (r dockerDevice) gpus() []string {
	if r.Driver == "cdi" {
		return r.DeviceIDs
	}
	isGPU := r.Driver == "nvidia" || slices.ContainsFunc(r.Capabilities, func(all []string) bool { return slices.Contains(all, "gpu") })
	switch {
	case !isGPU:
		return nil
	case len(r.DeviceIDs) > 0:
		return []string{"device=" + strings.Join(r.DeviceIDs, ",")}
	case r.Count < 0:
		return []string{"all"}
	}
	return []string{"count=" + itoa(r.Count)}
}

// finish adds what environment and device files say of GPUs. The environment counts only
// under NVIDIA's runtime: images of CUDA carry it wherever they run.
func (c *container) finish(nvidiaRuntime bool) {
	for _, e := range c.env {
		switch key, value, _ := strings.Cut(e, "="); key {
		case "NVIDIA_VISIBLE_DEVICES":
			if nvidiaRuntime && len(c.GPUs) == 0 && value != "" && value != "void" && value != "none" {
				c.GPUs = append(c.GPUs, value)
			}
		case "NVIDIA_REQUIRE_CUDA":
			c.RequireCUDA = value
		}
	}
	for _, d := range c.devices {
		if gpuFile.MatchString(d) || strings.HasPrefix(d, "/dev/nvidia-caps/") || d == "/dev/kfd" || strings.HasPrefix(d, "/dev/dri/") {
			c.GPUs = append(c.GPUs, d)
		}
	}
	slices.SortFunc(c.binds, func(a, b bind) int { return cmp.Compare(a.from, b.from) })
	for _, b := range c.binds {
		if strings.HasPrefix(b.from, "/") && !ofRuntime(b.from) {
			c.Mounts = append(c.Mounts, b.from)
		}
	}
	c.Mounts = slices.Compact(c.Mounts)
}

// ofRuntime reports whether a mount is what every container has.
func ofRuntime(dir string) bool {
	switch first, _, _ := strings.Cut(strings.TrimPrefix(dir, "/"), "/"); first {
	case "proc", "sys", "dev":
		return true
	}
	for _, prefix := range []string{"/run/containerd", "/var/lib/kubelet/pods", "/etc/hosts", "/var/lib/docker/containers", "/run/nvidia", "/usr/lib", "/usr/bin"} {
		if dir == prefix || strings.HasPrefix(dir, prefix+"/") {
			return true
		}
	}
	return false
}

// ociSpec is what of a runtime's specification is used.
type ociSpec struct {
	Process struct {
		Env []string `json:"env"`
	} `json:"process"`
	Mounts []struct {
		Source      string `json:"source"`
		Destination string `json:"destination"`
		Type        string `json:"type"`
	} `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		Devices []struct {
			Path string `json:"path"`
		} `json:"devices"`
	} `json:"linux"`
}

func (o ociSpec) container(id string) container {
	c := container{env: o.Process.Env, labels: o.Annotations}
	c.ID, c.Name, c.State = id, id, "running"
	for _, m := range o.Mounts {
		if m.Type == "bind" || m.Type == "" {
			c.binds = append(c.binds, bind{m.Source, m.Destination})
		}
	}
	for _, d := range o.Linux.Devices {
		c.devices = append(c.devices, d.Path)
	}
	return c
}

// containerd reads the specifications of its running containers, of Kubernetes among them.
func (s *scene) containerd() []container {
	var out []container
	const tasks = "run/containerd/io.containerd.runtime.v2.task"
	for _, space := range s.folder("containerd", tasks) {
		if space == "moby" { // Docker's: it has told more of them
			continue
		}
		for _, id := range s.folder("containerd", path.Join(tasks, space)) {
			var spec ociSpec
			if !s.object(path.Join(tasks, space, id, "config.json"), &spec) || spec.Annotations["io.kubernetes.cri.container-type"] == "sandbox" {
				continue
			}
			c := spec.container(id)
			c.Runtime = "containerd"
			if space == "k8s.io" {
				c.Runtime = "kubernetes"
			}
			c.Name = cmp.Or(spec.Annotations["io.kubernetes.cri.container-name"], spec.Annotations["nerdctl/name"], id)
			c.Image = spec.Annotations["io.kubernetes.cri.image-name"]
			c.finish(true)
			out = append(out, c)
		}
	}
	return out
}

// A stored is a container in a list of containers/storage.
type stored struct {
	ID       string   `json:"id"`
	Names    []string `json:"names"`
	Metadata string   `json:"metadata"`
}

// podman reads the files of containers/storage, which CRI-O has too. Containers that are
// removed when they end, as those of podman's units are, stand in a list of their own.
func (s *scene) podman() []container {
	var out []container
	for _, place := range []struct{ list, run string }{
		{"var/lib/containers/storage/overlay-containers", "run/containers/storage/overlay-containers"},
	} {
		var all, more []stored
		if !s.object(path.Join(place.list, "containers.json"), &all) {
			_ = s.folder("podman", place.list)
		}
		for _, name := range []string{path.Join(place.list, "volatile-containers.json"), path.Join(place.run, "volatile-containers.json")} {
			if more = nil; s.object(name, &more) {
				all = append(all, more...)
			}
		}
		for _, e := range all {
			var spec ociSpec
			id := path.Base(path.Clean("/" + e.ID))
			running := s.object(path.Join(place.run, id, "userdata/config.json"), &spec)
			if !running && !s.object(path.Join(place.list, id, "userdata/config.json"), &spec) {
				continue
			}
			if spec.Annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox" {
				continue
			}
			c := spec.container(e.ID)
			var about struct {
				Image string `json:"image-name"`
			}
			_ = json.Unmarshal([]byte(e.Metadata), &about)
			c.Runtime, c.Image = "podman", about.Image
			if name := spec.Annotations["io.kubernetes.container.name"]; name != "" {
				c.Runtime, c.Name = "kubernetes", name
			} else if len(e.Names) > 0 {
				c.Name = e.Names[0]
			}
			if pid := s.tree.text(path.Join(place.run, id, "userdata/pidfile")); !running || !s.tree.exists("proc/"+cmp.Or(path.Base(pid), "none")) {
				c.State = "exited"
			}
			c.finish(true)
			out = append(out, c)
		}
	}
	return out
}
