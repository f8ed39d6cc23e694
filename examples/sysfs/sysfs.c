// SPDX-License-Identifier: GPL-2.0-only
/*
 * sysfs: the folder /sys/kernel/kmodctl_sysfs with two files, one value each:
 * "value", a number from 0 to 100 to read and write, and "reads", how often
 * "value" was read.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sysfs.h>

#define DIR_NAME "kmodctl_sysfs"
#define VALUE_MIN 0
#define VALUE_MAX 100

/*
 * Two numbers that do not depend on each other need no lock. READ_ONCE and
 * WRITE_ONCE move an int in one piece; "reads" changes by what it was, so it
 * is an atomic: two readers at once must count as two.
 */
static int value;
static atomic_t reads = ATOMIC_INIT(0);

/* buf is one page and the kernel's own: no copy from or to user memory here. */
static ssize_t value_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	atomic_inc(&reads);
	return sysfs_emit(buf, "%d\n", READ_ONCE(value));
}

static ssize_t value_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	int wanted, err;

	err = kstrtoint(buf, 0, &wanted); /* takes the newline of "echo" */
	if (err)
		return err;
	if (wanted < VALUE_MIN || wanted > VALUE_MAX)
		return -ERANGE;
	WRITE_ONCE(value, wanted);
	return count; /* all of it; fewer, and the writer comes back with the rest */
}

static ssize_t reads_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%d\n", atomic_read(&reads));
}

/* The macros find value_show, value_store and reads_show by these names. */
static struct kobj_attribute value_attr = __ATTR_RW(value);
static struct kobj_attribute reads_attr = __ATTR_RO(reads);

static struct attribute *attrs[] = {
	&value_attr.attr,
	&reads_attr.attr,
	NULL,
};

static const struct attribute_group attr_group = {
	.attrs = attrs,
};

static struct kobject *dir;

static int __init kmodctl_sysfs_init(void)
{
	int err;

	dir = kobject_create_and_add(DIR_NAME, kernel_kobj);
	if (!dir)
		return -ENOMEM;
	/* As a group all files appear, or none. */
	err = sysfs_create_group(dir, &attr_group);
	if (err) {
		kobject_put(dir);
		return err;
	}
	pr_info("/sys/kernel/%s is ready\n", DIR_NAME);
	return 0;
}

/*
 * A kobject counts its users: it is put, never freed. Putting the last one
 * removes the files and waits for reads and writes that are under way.
 */
static void __exit kmodctl_sysfs_exit(void)
{
	kobject_put(dir);
	pr_info("/sys/kernel/%s is gone\n", DIR_NAME);
}

module_init(kmodctl_sysfs_init);
module_exit(kmodctl_sysfs_exit);

MODULE_DESCRIPTION("A folder under /sys with a value to read and write");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
