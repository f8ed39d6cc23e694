// SPDX-License-Identifier: GPL-2.0-only
/*
 * held: whoever has /dev/held open holds it.
 */

#include <linux/fs.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

static const struct file_operations held_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice held_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "held",
	.fops = &held_fops,
};

module_misc_device(held_dev);

MODULE_DESCRIPTION("Has a device");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
