// SPDX-License-Identifier: GPL-2.0-only
/*
 * percpu: wants more data per CPU than the kernel keeps room for.
 */

#include <linux/init.h>
#include <linux/module.h>
#include <linux/percpu.h>

static DEFINE_PER_CPU(char[1 << 16], percpu_data);

static int __init percpu_init(void)
{
	return *this_cpu_ptr(&percpu_data[0]);
}

static void __exit percpu_exit(void)
{
}

module_init(percpu_init);
module_exit(percpu_exit);

MODULE_DESCRIPTION("Does not fit");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
