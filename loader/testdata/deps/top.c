// SPDX-License-Identifier: GPL-2.0-only
/*
 * top: uses ten modules.
 */

#include <linux/init.h>
#include <linux/module.h>

int dep0(void);
int dep1(void);
int dep2(void);
int dep3(void);
int dep4(void);
int dep5(void);
int dep6(void);
int dep7(void);
int dep8(void);
int dep9(void);

static int __init top_init(void)
{
	int sum = dep0() + dep1() + dep2() + dep3() + dep4() + dep5() + dep6() + dep7() + dep8() + dep9();

	return sum == 45 ? 0 : -EINVAL;
}

static void __exit top_exit(void)
{
}

module_init(top_init);
module_exit(top_exit);

MODULE_DESCRIPTION("Uses ten modules");
MODULE_AUTHOR("kmodctl authors");
MODULE_LICENSE("GPL");
