// SPDX-License-Identifier: GPL-2.0-only
/*
 * hello: the smallest module that is worth loading. It says one line when it
 * comes and one when it goes.
 */

/* Must stand before the includes: pr_info() and its kin put it before each line. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

/*
 * Runs once, when the module is inserted. 0 means "I am live"; a negative
 * errno (-ENOMEM, -ENODEV) means "I could not start", and the kernel throws
 * the module out again. __init: the kernel frees this code once it has run.
 */
static int __init hello_init(void)
{
	pr_info("module loaded\n");
	return 0;
}

/*
 * Runs once, when the module is removed, and cannot refuse. Whatever init
 * took must be given back here: nobody cleans up after a module.
 */
static void __exit hello_exit(void)
{
	pr_info("module unloaded\n");
}

module_init(hello_init);
module_exit(hello_exit);

MODULE_DESCRIPTION("Says hello when loaded and goodbye when unloaded");
MODULE_AUTHOR("kmodctl authors");
MODULE_VERSION("1.0.0");
/* Not decoration: many of the kernel's functions are for GPL modules only. */
MODULE_LICENSE("GPL");
