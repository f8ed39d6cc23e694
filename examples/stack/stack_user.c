// SPDX-License-Identifier: GPL-2.0-only
/*
 * stack_user: uses the functions that the module stack exports. Calling them
 * is all it takes: the build notes the dependency (depends: stack).
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

#include "stack.h"

#define LAST 3

/* Takes everything off the stack again and says what it was. */
static void drain(void)
{
	int value;

	while (stack_pop(&value) == 0)
		pr_info("popped %d\n", value);
}

static int __init stack_user_init(void)
{
	int value, err;

	for (value = 1; value <= LAST; value++) {
		err = stack_push(value);
		if (err) {
			/* Leave nothing of ours behind: our exit will not run. */
			drain();
			return err;
		}
	}
	pr_info("pushed 1 to %d, depth is %u\n", LAST, stack_depth());
	drain();
	pr_info("depth is %u\n", stack_depth());
	return 0;
}

/* Empty, yet needed: a module without an exit function can never be removed. */
static void __exit stack_user_exit(void)
{
}

module_init(stack_user_init);
module_exit(stack_user_exit);

MODULE_DESCRIPTION("Uses the functions that the module stack exports");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
