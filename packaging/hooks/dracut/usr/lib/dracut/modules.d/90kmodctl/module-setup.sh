#!/bin/bash
# An initramfs is made for kernel $kernel: the modules of packages that say `initramfs = true` go in.
check() { [ -x /usr/bin/kmodctl ]; }
installkernel() { hostonly='' instmods $(/usr/bin/kmodctl hook initramfs "$kernel"); }
