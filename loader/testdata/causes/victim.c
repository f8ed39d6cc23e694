// SPDX-License-Identifier: GPL-2.0-only
/*
 * victim: a module with a parameter of every kind. The tests damage copies of it.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int number;
module_param(number, int, 0644);
MODULE_PARM_DESC(number, "any number");

static unsigned char small;
module_param(small, byte, 0444);
MODULE_PARM_DESC(small, "0 to 255");

static bool flag;
module_param(flag, bool, 0444);
MODULE_PARM_DESC(flag, "yes or no");

static char *text = "";
module_param(text, charp, 0444);
MODULE_PARM_DESC(text, "up to 1024 bytes");

static char word[8];
module_param_string(word, word, sizeof(word), 0444);
MODULE_PARM_DESC(word, "up to 7 bytes");

static int list[3];
static int list_len;
module_param_array(list, int, &list_len, 0444);
MODULE_PARM_DESC(list, "up to 3 numbers");

static int __init victim_init(void)
{
	pr_info("number is %d\n", number);
	return 0;
}

static void __exit victim_exit(void)
{
	pr_info("gone\n");
}

module_init(victim_init);
module_exit(victim_exit);

MODULE_DESCRIPTION("Has parameters");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
