// SPDX-License-Identifier: GPL-2.0-only
/*
 * chardev: /dev/kmodctl_chardev keeps one message. A write replaces it, a
 * read returns it, ioctl() clears it or tells its length.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "chardev.h"

/*
 * Guards message and length, which belong together. A mutex may be held while
 * sleeping, and copying to user memory may sleep: the page may be on disk.
 */
static DEFINE_MUTEX(lock);
static char *message;
static size_t length;

/* Takes over @new (may be NULL) as the message. Caller holds the lock. */
static void replace(char *new, size_t new_length)
{
	kfree(message);
	message = new;
	length = new_length;
}

static ssize_t chardev_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	ssize_t n;

	/* Interruptible: Ctrl-C must end a process that waits for the lock. */
	if (mutex_lock_interruptible(&lock))
		return -ERESTARTSYS;
	n = simple_read_from_buffer(buf, count, pos, message, length);
	mutex_unlock(&lock);
	return n;
}

/* One write is one message: the position in the file plays no part. */
static ssize_t chardev_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	char *new;

	if (count > CHARDEV_MAX)
		return -EMSGSIZE;

	/*
	 * Never follow a pointer from user space yourself: memdup_user()
	 * checks it. Copied before the lock is taken, so that a bad pointer
	 * cannot leave half a message.
	 */
	new = memdup_user(buf, count);
	if (IS_ERR(new))
		return PTR_ERR(new);

	if (mutex_lock_interruptible(&lock)) {
		kfree(new);
		return -ERESTARTSYS;
	}
	replace(new, count);
	mutex_unlock(&lock);
	return count;
}

static long chardev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	__u32 __user *out = (__u32 __user *)arg;
	long ret = 0;

	if (mutex_lock_interruptible(&lock))
		return -ERESTARTSYS;
	switch (cmd) {
	case CHARDEV_CLEAR:
		replace(NULL, 0);
		break;
	case CHARDEV_LENGTH:
		ret = put_user(length, out);
		break;
	default:
		ret = -ENOTTY; /* what programs expect for an ioctl that is not ours */
	}
	mutex_unlock(&lock);
	return ret;
}

static const struct file_operations chardev_fops = {
	/* An open file holds the module: it cannot be removed under its user. */
	.owner = THIS_MODULE,
	.read = chardev_read,
	.write = chardev_write,
	.llseek = default_llseek,
	.unlocked_ioctl = chardev_ioctl,
	.compat_ioctl = compat_ptr_ioctl, /* 32-bit programs on a 64-bit kernel */
};

/* A misc device gets its number and its file in /dev from the kernel. */
static struct miscdevice chardev_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kmodctl_chardev",
	.fops = &chardev_fops,
	.mode = 0666,
};

static int __init chardev_init(void)
{
	/* Last step of init: from here on programs may open the device. */
	int err = misc_register(&chardev_misc);

	if (err)
		return err;
	pr_info("%s is ready\n", CHARDEV_PATH);
	return 0;
}

static void __exit chardev_exit(void)
{
	/* First the door, then the furniture. No lock: nobody is inside now. */
	misc_deregister(&chardev_misc);
	kfree(message);
	pr_info("%s is gone\n", CHARDEV_PATH);
}

module_init(chardev_init);
module_exit(chardev_exit);

MODULE_DESCRIPTION("A device file that keeps one message");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
