// SPDX-License-Identifier: GPL-2.0-only
/* A driver as a vendor ships it: with firmware, and a parameter that modprobe.d sets. */
#include <linux/firmware.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static unsigned int brightness = 50;
module_param(brightness, uint, 0444);
MODULE_PARM_DESC(brightness, "in percent");

static struct platform_device *device;

static int __init acme_led_init(void)
{
	const struct firmware *fw;

	device = platform_device_register_simple("acme_led", -1, NULL, 0);
	if (IS_ERR(device))
		return PTR_ERR(device);
	if (request_firmware_direct(&fw, "acme/led.bin", &device->dev)) {
		pr_info("acme_led: loaded without firmware: brightness=%u\n", brightness);
		return 0;
	}
	pr_info("acme_led: loaded: brightness=%u, %zu bytes of firmware\n", brightness, fw->size);
	release_firmware(fw);
	return 0;
}

static void __exit acme_led_exit(void)
{
	platform_device_unregister(device);
	pr_info("acme_led: unloaded\n");
}

module_init(acme_led_init);
module_exit(acme_led_exit);

MODULE_FIRMWARE("acme/led.bin");
MODULE_DESCRIPTION("The smallest driver that ships more than a module");
MODULE_LICENSE("GPL");
