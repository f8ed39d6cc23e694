// SPDX-License-Identifier: GPL-2.0-only
/*
 * stack: a library for other modules, a small last-in first-out store of
 * numbers. Alone it does nothing; stack_user uses it.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/errno.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/spinlock.h>

#include "stack.h"

#define STACK_SIZE 16

static int values[STACK_SIZE];
static unsigned int depth;

/*
 * Guards values and depth. A spinlock with interrupts off, not a mutex: we do
 * not know who will call us, and an interrupt handler must not sleep.
 */
static DEFINE_SPINLOCK(stack_lock);

/**
 * stack_push() - put a number on top of the stack
 * @value: the number
 *
 * Context: any; does not sleep.
 * Return: 0, or -ENOSPC when the stack is full.
 */
int stack_push(int value)
{
	unsigned long flags;
	int err = 0;

	spin_lock_irqsave(&stack_lock, flags);
	if (depth < STACK_SIZE)
		values[depth++] = value;
	else
		err = -ENOSPC;
	spin_unlock_irqrestore(&stack_lock, flags);
	return err;
}
EXPORT_SYMBOL_GPL(stack_push);

/**
 * stack_pop() - take the number on top of the stack
 * @value: where to put it; left alone on an error
 *
 * Context: any; does not sleep.
 * Return: 0, or -ENOENT when the stack is empty.
 */
int stack_pop(int *value)
{
	unsigned long flags;
	int err = 0;

	spin_lock_irqsave(&stack_lock, flags);
	if (depth > 0)
		*value = values[--depth];
	else
		err = -ENOENT;
	spin_unlock_irqrestore(&stack_lock, flags);
	return err;
}
EXPORT_SYMBOL_GPL(stack_pop);

/**
 * stack_depth() - how many numbers are on the stack
 *
 * The answer may be old by the time the caller looks at it: rely on the
 * result of stack_pop(), not on a depth read before.
 *
 * Context: any; does not sleep.
 * Return: the number of entries.
 */
unsigned int stack_depth(void)
{
	return READ_ONCE(depth);
}
EXPORT_SYMBOL_GPL(stack_depth);

static int __init stack_init(void)
{
	pr_info("ready, room for %d numbers\n", STACK_SIZE);
	return 0;
}

/*
 * No lock: the kernel removes us only after every module that uses our
 * symbols has gone, so nobody can be calling.
 */
static void __exit stack_exit(void)
{
	pr_info("gone, %u numbers left\n", depth);
}

module_init(stack_init);
module_exit(stack_exit);

MODULE_DESCRIPTION("A stack of numbers for other modules to use");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
