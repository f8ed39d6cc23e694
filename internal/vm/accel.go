package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// accelVariable overrides what Accel finds: "kvm" or "tcg".
const accelVariable = "KMODCTL_VM_ACCEL"

// Accel names the accelerator that Run will use, "kvm" or "tcg" (emulation), and
// why. The variable KMODCTL_VM_ACCEL decides when it is set; its value is
// returned as it is, and Run refuses any other.
//
// A machine may have a /dev/kvm that cannot run a kernel (nested under a
// hypervisor in software, where a small probe still works). So a "kvm" found
// here is tried by the first Run: without a sign of life from the guest within
// 5 s that Run starts again with tcg, and so does every later one.
func Accel() (name, reason string) {
	if v := os.Getenv(accelVariable); v != "" {
		return v, accelVariable + " is set"
	}
	if reason := kvm.failure(); reason != "" {
		return "tcg", reason
	}
	if err := kvmUsable(); err != nil {
		return "tcg", err.Error()
	}
	return "kvm", "/dev/kvm is usable"
}

// kvmUsable is the check that costs nothing: it finds the machines where KVM is
// absent, forbidden, or not the kernel's own.
func kvmUsable() error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	const getAPIVersion = 0xae00 // KVM_GET_API_VERSION, include/uapi/linux/kvm.h
	if v, err := unix.IoctlRetInt(int(dev.Fd()), getAPIVersion); err != nil || v != 12 {
		return fmt.Errorf("/dev/kvm: API version %d, not 12", v)
	}
	_, intel := os.Stat("/sys/module/kvm_intel")
	_, amd := os.Stat("/sys/module/kvm_amd")
	if intel != nil && amd != nil {
		return errors.New("neither kvm_intel nor kvm_amd is present")
	}
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !bytes.Contains(cpuinfo, []byte(" vmx")) && !bytes.Contains(cpuinfo, []byte(" svm")) {
		return errors.New("/proc/cpuinfo has neither vmx nor svm")
	}
	return nil
}

// kvm is what this process has learnt about KVM by booting with it.
var kvm verdict

type verdict struct {
	mu     sync.Mutex
	proven bool
	broken string // why not; "" while nothing is known against it
}

// untried reports whether the next boot with KVM is the trial. What the user has
// decided by the variable is not tried.
func (v *verdict) untried() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.proven && os.Getenv(accelVariable) == ""
}

func (v *verdict) failure() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.broken
}

func (v *verdict) set(begun bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.proven = v.proven || begun; !v.proven {
		v.broken = "a guest under KVM gave no sign of life"
	}
}

// trial is how long a guest under KVM may take to its first sign of life. A real
// KVM needs less than a second; a false one spins for ever.
const trial = 5 * time.Second

// try boots with KVM, and with emulation when the guest did not get as far as
// its init.
func (m *machine) try(ctx context.Context) (exit int, err error) {
	exit, err = m.boot(ctx, "kvm", trial)
	kvm.set(m.out.begun())
	if err == nil || m.out.begun() || ctx.Err() != nil {
		return exit, err
	}
	return m.boot(ctx, "tcg", 0)
}

// defaultTimeout is 60 s, under emulation times the work that waits for each
// processor, at most fourfold.
func defaultTimeout(accel string) time.Duration {
	const base = time.Minute
	if accel == "kvm" {
		return base
	}
	var load float64
	if s, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(s), &load)
	}
	return time.Duration(float64(base) * min(4, max(1, load/float64(runtime.NumCPU()))))
}
