package dkms

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kmodctl/internal/kernel"
)

func TestMain(m *testing.M) {
	Stage()
	os.Exit(m.Run())
}

// target is a kernel without headers.
var target = kernel.Release{Name: "6.1.0-56-amd64", Arch: "x86_64", Root: "/"}

func evaluate(t *testing.T, text string) (Conf, error) {
	t.Helper()
	return Evaluate(t.Context(), Source{Text: []byte(text)}, target)
}

func TestPlain(t *testing.T) {
	conf, err := evaluate(t, `
PACKAGE_NAME="vendor-nic"
PACKAGE_VERSION=2.4.1
BUILT_MODULE_NAME[0]=vendor_nic
BUILT_MODULE_LOCATION[0]=src/nic/
DEST_MODULE_LOCATION[0]=/kernel/drivers/net
BUILT_MODULE_NAME[1]=vendor_diag
DEST_MODULE_NAME[1]=vendor_diagnosis
DEST_MODULE_LOCATION[1]=/extra
STRIP[1]=no
MAKE[0]="make KVER=$kernelver -C $dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build"
AUTOINSTALL=yes
`)
	want := Conf{
		Name: "vendor-nic", Version: "2.4.1", AutoInstall: true,
		Make: "make KVER=6.1.0-56-amd64 -C /var/lib/dkms/vendor-nic/2.4.1/build",
		Modules: []Module{
			{Name: "vendor_nic", Location: "src/nic", Dest: "vendor_nic", DestLocation: "/kernel/drivers/net", Strip: true},
			{Name: "vendor_diag", Dest: "vendor_diagnosis", DestLocation: "/extra"},
		},
	}
	if diff := cmp.Diff(want, conf); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
