// SPDX-License-Identifier: GPL-2.0-only
/*
 * params: four parameters, given at load time and changed later through
 * /sys/module/params/parameters/.
 *
 * The kernel holds the module's parameter lock whenever it parses, shows or
 * changes a parameter. Code that reads one on its own, as show_params() does,
 * takes that lock too: a write to "greeting" frees the old string, and the
 * files under /sys exist before init runs and until after exit has run.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

#define COUNT_MIN 0
#define COUNT_MAX 100

/* 0644: everyone may read the file under /sys, root may write it. */
static bool verbose;
module_param(verbose, bool, 0644);
MODULE_PARM_DESC(verbose, "say so when count changes");

/* charp: the kernel keeps its own copy of the text and frees it. */
static char *greeting = "hello";
module_param(greeting, charp, 0644);
MODULE_PARM_DESC(greeting, "text to greet with");

/*
 * The array's size is the limit; ports_len is how many were given. Unlike
 * count below, a refused array is not left as it was: the kernel stores each
 * number as it reads it.
 */
static int ports[4] = { 80 };
static unsigned int ports_len = 1;
module_param_array(ports, int, &ports_len, 0644);
MODULE_PARM_DESC(ports, "up to 4 numbers, separated by commas");

static int count = 1;

/*
 * Called for count=... at load time and for each write to the file. Checks
 * first and stores last, so that a refused value leaves the old one in place.
 */
static int count_set(const char *val, const struct kernel_param *kp)
{
	int *stored = kp->arg;
	int wanted, err;

	err = kstrtoint(val, 0, &wanted);
	if (err)
		return err;
	/* Not printed until dynamic debug turns it on: kmodctl dyndbg params on. */
	pr_debug("count: asked for %d\n", wanted);
	if (wanted < COUNT_MIN || wanted > COUNT_MAX)
		return -ERANGE;

	if (verbose)
		pr_info("count: %d -> %d\n", *stored, wanted);
	*stored = wanted;
	return 0;
}

static const struct kernel_param_ops count_ops = {
	.set = count_set,
	.get = param_get_int,
};

module_param_cb(count, &count_ops, &count, 0644);
/* module_param() notes the type for modinfo; module_param_cb() cannot know it. */
MODULE_INFO(parmtype, "count:int");
MODULE_PARM_DESC(count, "a number from 0 to 100");

static void show_params(const char *when)
{
	unsigned int i;

	kernel_param_lock(THIS_MODULE);
	pr_info("%s: count=%d verbose=%d greeting=%s\n", when, count, verbose, greeting);
	for (i = 0; i < ports_len; i++)
		pr_info("%s: ports[%u]=%d\n", when, i, ports[i]);
	kernel_param_unlock(THIS_MODULE);
}

static int __init params_init(void)
{
	show_params("loaded");
	return 0;
}

static void __exit params_exit(void)
{
	show_params("unloaded");
}

module_init(params_init);
module_exit(params_exit);

MODULE_DESCRIPTION("Parameters of every common kind, one of them validated");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
