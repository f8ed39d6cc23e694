package dkms

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
)

// TestConvert: what a kmod.toml can say is said, the rest is a comment. That the text is a manifest, Convert itself checks.
func TestConvert(t *testing.T) {
	conf := `PACKAGE_NAME=nic
PACKAGE_VERSION=2.0
BUILT_MODULE_NAME[0]=nic
BUILT_MODULE_LOCATION[0]=src/
DEST_MODULE_LOCATION[0]=/extra
BUILT_MODULE_NAME[1]=diag
DEST_MODULE_NAME[1]=nic_diag
DEST_MODULE_LOCATION[1]=/extra
STRIP[1]=no
BUILD_EXCLUSIVE_KERNEL_MIN=5.10
BUILD_EXCLUSIVE_KERNEL_MAX=6.13
BUILD_EXCLUSIVE_CONFIG="CONFIG_NET !CONFIG_PREEMPT_RT"
BUILD_EXCLUSIVE_ARCH='x86_64|aarch64'
BUILD_DEPENDS=base
PATCH[0]=a.patch
PATCH[1]=b.patch
PATCH_MATCH[1]='^6\.8'
PRE_BUILD="configure --tree=$kernel_source_dir --for=$kernelver"
MAKE="make -j8 -C $kernel_source_dir M=$dkms_tree/nic/2.0/build DEBUG=1 all"
POST_INSTALL="after.sh"
if [ "$kernelver" = 9.9.9 ]; then PRE_BUILD=other; fi
`
	other := kernel.Release{Name: "9.9.9", Arch: "x86_64", Root: "/"}
	want := `# From the dkms.conf of nic 2.0, as it is for kernel 6.1.0-56-amd64.
# For 9.9.9 it says something else: kmodctl convert -k 9.9.9
name = "nic"
version = "2.0"

[[module]]
name = "nic"
dir = "src"

# DEST_MODULE_NAME is nic_diag: kmodctl installs a module by the name that it is built by.
# STRIP is no: kmodctl takes debug information off each module, and symbols stay.
[[module]]
name = "diag"

[kernel]
release = ">=5.10, <6.13"
config = ["NET", "!PREEMPT_RT"]
arch = ["x86_64", "aarch64"]

[build]
needs = ["base"]
# For kernels that match the regular expression "^6\\.8": add { file = "patches/b.patch", release = "..." } to patches.
patches = [{ file = "patches/a.patch" }]
prepare = [["./configure", "--tree={build_tree}", "--for={release}"]]
# MAKE also sets DEBUG=1 for kbuild: write it into the Kbuild file.
targets = ["all"]

# POST_INSTALL is "after.sh": kmodctl runs no script of a source as root; a package's own postinst can.
# AUTOINSTALL is not set: kmodctl builds each package that it keeps for new kernels.
`
	got, err := Convert(t.Context(), Source{Text: []byte(conf)}, target, []kernel.Release{other, {Name: "6.12.1", Arch: "x86_64", Root: "/"}})
	if diff := cmp.Diff(want, string(got)); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
