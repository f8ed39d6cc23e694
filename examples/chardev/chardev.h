/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/* What the module "chardev" and the programs that use its device agree on. */
#ifndef KMODCTL_CHARDEV_H
#define KMODCTL_CHARDEV_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define CHARDEV_PATH "/dev/kmodctl_chardev"

/* The longest message in bytes; a longer write is refused with EMSGSIZE. */
#define CHARDEV_MAX 4096

/* Forget the message. */
#define CHARDEV_CLEAR _IO('k', 0x80)

/* Store the length of the message, in bytes, in the __u32 pointed to. */
#define CHARDEV_LENGTH _IOR('k', 0x81, __u32)

#endif
