// SPDX-License-Identifier: GPL-2.0-only
/*
 * procfs: the file /proc/kmodctl_procfs shows a greeting and how often it was
 * read; a write sets the greeting.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>

#define PROC_NAME "kmodctl_procfs"
#define GREETING_SIZE 64 /* with the zero at its end */

/* Guards both: a reader must never see half a greeting. */
static DEFINE_MUTEX(lock);
static char greeting[GREETING_SIZE] = "hello";
static unsigned long reads;

/*
 * Makes the whole text; seq_file keeps it and hands it out in pieces as large
 * as the reader wants, so that even one-byte reads see one consistent text.
 */
static int procfs_show(struct seq_file *seq, void *unused)
{
	mutex_lock(&lock);
	reads++;
	seq_printf(seq, "greeting: %s\n", greeting);
	seq_printf(seq, "reads: %lu\n", reads);
	mutex_unlock(&lock);
	return 0;
}

static int procfs_open(struct inode *inode, struct file *file)
{
	return single_open(file, procfs_show, NULL);
}

static ssize_t procfs_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	char *copy, *text;
	ssize_t ret = count;

	/* Before the copy: a write of 1 GB must not cost 1 GB of kernel memory. */
	if (count > GREETING_SIZE)
		return -EMSGSIZE;
	copy = memdup_user_nul(buf, count);
	if (IS_ERR(copy))
		return PTR_ERR(copy);

	text = strim(copy); /* "echo" ends its text with a newline */
	if (*text == '\0' || strchr(text, '\n')) {
		ret = -EINVAL; /* one line, or readers could not trust the format */
	} else if (strlen(text) >= GREETING_SIZE) {
		ret = -EMSGSIZE;
	} else {
		mutex_lock(&lock);
		strscpy(greeting, text, sizeof(greeting));
		mutex_unlock(&lock);
	}
	kfree(copy);
	return ret;
}

/*
 * No owner, unlike a device's file_operations: proc_remove() waits for calls
 * that are under way, and a file that is still open afterwards answers EIO.
 */
static const struct proc_ops procfs_ops = {
	.proc_open = procfs_open,
	.proc_read = seq_read,
	.proc_write = procfs_write,
	.proc_lseek = seq_lseek,
	.proc_release = single_release,
};

static struct proc_dir_entry *entry;

static int __init procfs_init(void)
{
	entry = proc_create(PROC_NAME, 0644, NULL, &procfs_ops);
	if (!entry)
		return -ENOMEM;
	pr_info("/proc/%s is ready\n", PROC_NAME);
	return 0;
}

static void __exit procfs_exit(void)
{
	proc_remove(entry);
	pr_info("/proc/%s is gone\n", PROC_NAME);
}

module_init(procfs_init);
module_exit(procfs_exit);

MODULE_DESCRIPTION("A file under /proc that is read and written");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
