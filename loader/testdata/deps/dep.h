/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A module that exports dep<N>() and calls dep0(), and whose init takes as long
 * and returns what it is told. N is defined by who includes this.
 */

#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/stringify.h>

#define NAME(n) CONCATENATE(dep, n)

static int ret;
module_param(ret, int, 0444);
MODULE_PARM_DESC(ret, "what init returns: 0 or a negative errno");

static unsigned int takes_ms;
module_param(takes_ms, uint, 0444);
MODULE_PARM_DESC(takes_ms, "how long init takes");

int dep0(void);
int NAME(N)(void);

int NAME(N)(void)
{
	return N;
}
EXPORT_SYMBOL_GPL(NAME(N));

static int __init dep_init(void)
{
	if (takes_ms)
		msleep(takes_ms);
	return ret ? ret : dep0();
}

static void __exit dep_exit(void)
{
}

module_init(dep_init);
module_exit(dep_exit);

MODULE_DESCRIPTION("One of several that need each other");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
