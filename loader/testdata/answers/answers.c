// SPDX-License-Identifier: GPL-2.0-only
/*
 * answers: a module whose init takes as long and returns what it is told, for
 * the tests of the loader on real kernels.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int ret;
module_param(ret, int, 0444);
MODULE_PARM_DESC(ret, "what init returns: 0 or a negative errno");

static unsigned int takes_ms;
module_param(takes_ms, uint, 0444);
MODULE_PARM_DESC(takes_ms, "how long init takes");

static char *text = "";
module_param(text, charp, 0444);
MODULE_PARM_DESC(text, "any text");

static int __init answers_init(void)
{
	msleep(takes_ms);
	if (!ret)
		pr_info("text is %s\n", text);
	return ret;
}

static void __exit answers_exit(void)
{
	pr_info("gone\n");
}

module_init(answers_init);
module_exit(answers_exit);

MODULE_DESCRIPTION("Returns what it is told");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
