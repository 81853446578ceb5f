package server

import (
	"fmt"

	"github.com/invarhq/invar/api"
	"github.com/invarhq/invar/runtime/local"
)

// features are the machine's, sorted by name, as the API tells them.
func features(f local.Features) []api.Feature {
	feature := func(name string, x local.Feature) api.Feature {
		return api.Feature{Name: name, Available: x.OK, Detail: x.Detail}
	}
	return []api.Feature{
		{Name: "cgroups", Available: f.CgroupVersion != 0, Detail: fmt.Sprintf("version %d", f.CgroupVersion)},
		feature("erofs", f.EROFS),
		feature("erofs-file-backed", f.FileBacked),
		feature("exit-codes-after-launcher", f.ExitCodes),
		feature("fs-verity", f.Verity),
		feature("gvisor", f.GVisor),
		feature("idmapped-mounts", f.IDMapped),
		feature("limits", f.Limits),
		feature("namespaces", f.Namespaces),
		feature("overlayfs", f.Overlay),
		feature("seccomp", f.Seccomp),
		feature("swap-limits", f.Swap),
		feature("user-namespaces", f.UserNamespaces),
	}
}
