package dkms

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"kmodctl/build"
	"kmodctl/internal/kernel"
)

// corpus are all packages of Debian 12 that have a dkms.conf.
var corpus = strings.Fields(`acpi-call adv-17v35x apfs bbswitch dahdi ddcci digimend dm-writeboost dpdk-kmods evdi falcosecurity-scap
	gost-crypto iptables-netflow jool langford librem-ec-acpi lime-forensics lttng-modules nat-rtsp openafs-modules openrazer-driver
	openvpn-dco rapiddisk rtpengine-kernel tp-smapi v4l2loopback vpoll west-chamber xtables-addons xtrx`)

const (
	insideEnv   = "KMODCTL_TEST_SOURCES" // the folder with the packages, for the test inside its namespace
	privateStep = "private"              // of the first step in there
)

// TestOracle compares Evaluate with DKMS's own reading, variable by variable, for every package
// of Debian 12 and both series of kernels. DKMS and the packages are fetched by apt.
//
// The packages' sources are at /usr/src and DKMS's tree at /var/lib/dkms for both, in a mount namespace.
func TestOracle(t *testing.T) {
	if os.Getenv(insideEnv) == privateStep {
		runtime.LockOSThread()
		must(t, build.PrivateMounts())
		must(t, os.Setenv(insideEnv, os.Getenv("PWD")))
		must(t, syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
	}
	if dir := os.Getenv(insideEnv); dir != "" {
		t.Run("inside", func(t *testing.T) { compareAll(t, dir) })
		return
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	args := []string{"download", "-q", "dkms"}
	for _, name := range corpus {
		args = append(args, name+"-dkms")
	}
	mustRun(t, dir, "apt-get", args...)
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	must(t, err)
	for _, deb := range debs {
		mustRun(t, dir, "dpkg-deb", "-x", deb, dir)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOracle$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), insideEnv+"="+privateStep)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func compareAll(t *testing.T, dir string) {
	must(t, unix.Mount("overlay", "/usr/src", "overlay", unix.MS_RDONLY, "lowerdir="+filepath.Join(dir, "usr/src")+":/usr/src"))
	must(t, unix.Mount("tmpfs", "/var/lib", "tmpfs", 0, "mode=755"))
	confs, err := filepath.Glob(filepath.Join(dir, "usr/src/*/dkms.conf"))
	must(t, err)
	series := kernels(t)
	equal, want := 0, len(corpus)*len(series)
	for _, k := range series {
		for _, conf := range confs {
			if compare(t, dir, filepath.Base(filepath.Dir(conf)), k) {
				equal++
			}
		}
	}
	if t.Logf("%d of %d equal", equal, want); equal != want {
		t.Fail()
	}
}

// kernels are one of each series with headers.
func kernels(t *testing.T) (list []kernel.Release) {
	t.Helper()
	found, err := kernel.Find("/")
	must(t, err)
	for _, series := range []string{"6.1.", "6.12."} {
		i := slices.IndexFunc(found, func(k kernel.Release) bool { return k.Tree != nil && strings.HasPrefix(k.Name, series) })
		if i < 0 {
			t.Fatalf("no kernel %s* with headers is installed: .ci/setup test", series)
		}
		list = append(list, found[i])
	}
	return list
}

// compare reads one package both ways.
func compare(t *testing.T, dir, source string, k kernel.Release) bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/usr/src", source, ConfFile))
	must(t, err)
	alone, err := Evaluate(t.Context(), Source{Dir: "/usr/src/" + source, Text: text}, k)
	if err != nil {
		t.Errorf("%s for %s: %v", source, k.Name, err)
		return false
	}
	s := Source{Dir: "/usr/src/" + source, Text: text, Name: alone.Name, Version: alone.Version}
	tree := filepath.Join("/var/lib/dkms", s.Name, s.Version)
	must(t, os.MkdirAll(tree, 0o755))
	if err := os.Symlink(s.Dir, filepath.Join(tree, "source")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	m := newMessage(s, ConfFile, k, Framework{})
	r, err := m.run(t.Context())
	must(t, err)
	conf, err := newConf(ConfFile, r, k)
	must(t, err)
	if diff := cmp.Diff(alone, conf); diff != "" {
		t.Errorf("%s for %s: named and unnamed differ:\n%s", source, k.Name, diff)
	}
	if _, err := Convert(t.Context(), s, k, nil); err != nil {
		t.Errorf("convert %s for %s: %v", source, k.Name, err)
	}
	theirs := dkmsReads(t, dir, s, k)
	ours := asDKMS(r.Values, conf, k)
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("%s for %s (-DKMS +kmodctl):\n%s", source, k.Name, diff)
		return false
	}
	return true
}

// dkmsReads has DKMS read a conf: the functions of its script, without its program.
func dkmsReads(t *testing.T, dir string, s Source, k kernel.Release) map[string]string {
	t.Helper()
	cmd := exec.Command("bash", "-c", `
		script=$1 module=$2 module_version=$3 k=$4 a=$5
		eval "$(sed '/^#### Program Starts Here/,$d' "$script")"
		dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules tmp_location=/tmp current_os=Linux
		current_kernel=$k parallel_jobs=$(nproc) addon_modules_dir= ksourcedir_fromcli= kconfig_fromcli= last_mvka= conf=
		running_distribution=$(distro_version)
		declare -a directive_array=()
		read_conf "$k" "$a" "$dkms_tree/$module/$module_version/source/dkms.conf" >/dev/null || exit
		for name in $dkms_conf_variables make_command clean pre_build post_build pre_install post_add post_install post_remove package_name package_version; do
			declare -n array=$name
			for i in "${!array[@]}"; do
				printf '%s\0' "$name[$i]" "${array[$i]}"
			done
		done`, "dkms", filepath.Join(dir, "usr/sbin/dkms"), s.Name, s.Version, k.Name, k.Arch)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("DKMS reads %s for %s: %v\n%s", s.Name, k.Name, err, said.String())
	}
	words := strings.Split(string(out), "\x00")
	got := map[string]string{}
	for i := 0; i+1 < len(words); i += 2 {
		got[words[i]] = words[i+1]
	}
	if len(got) < 10 {
		t.Fatalf("DKMS took %v from %s: %s", got, s.Name, said.String())
	}
	// It has what it would run to clean up; that is of no use to us, and 3.4 has it no more.
	delete(got, "clean[0]")
	return got
}

// asDKMS is a Conf in DKMS's own variables.
func asDKMS(v values, c Conf, k kernel.Release) map[string]string {
	got := map[string]string{}
	for _, name := range directives {
		if strings.HasPrefix(name, "BUILD_EXCLUSIVE_KERNEL_") || name == "BUILD_DEPENDS_REBUILD" {
			continue // of 3.4; 3.0.10 does not know them
		}
		for i, value := range v[name] {
			got[fmt.Sprintf("%s[%d]", name, i)] = value
		}
	}
	command := c.Make
	if command == "" {
		command = fmt.Sprintf("make -C /lib/modules/%s/build M=/var/lib/dkms/%s/%s/build", k.Name, c.Name, c.Version)
	}
	maps.Copy(got, map[string]string{
		"make_command[0]": command, "package_name[0]": c.Name, "package_version[0]": c.Version,
		"pre_build[0]": c.PreBuild, "post_build[0]": c.PostBuild, "pre_install[0]": c.PreInstall,
		"post_add[0]": c.PostAdd, "post_install[0]": c.PostInstall, "post_remove[0]": c.PostRemove,
	})
	if c.Excluded != "" {
		got["build_exclude[0]"] = "yes"
	}
	for i, m := range c.Modules {
		at := "[" + strconv.Itoa(i) + "]"
		got["built_module_name"+at], got["dest_module_name"+at] = m.Name, m.Dest
		if got["built_module_location"+at] = m.Location; m.Location != "" {
			got["built_module_location"+at] += "/"
		}
		got["dest_module_location"+at] = DestLocation("/", m.DestLocation)
		got["strip"+at] = map[bool]string{true: "yes", false: "no"}[m.Strip]
	}
	for i, patch := range c.Patches {
		got[fmt.Sprintf("patch_array[%d]", i)] = patch
	}
	return got
}

func mustRun(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
