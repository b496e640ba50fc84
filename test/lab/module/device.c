// SPDX-License-Identifier: GPL-2.0
/*
 * What a VM sees of a mediated device: a PCI device of our own with a page of memory
 * that it can read and write, and without interrupts, by the VFIO uAPI.
 */

#include <linux/module.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vfio.h>

#include "gpuvirt_vgpu.h"

/* The first of the ids that Red Hat leaves to experiments in a lab. */
#define VGPU_GUEST_VENDOR	0x1af4
#define VGPU_GUEST_DEVICE	0x10f0

#define VGPU_BAR_SIZE		4096

/* Where a region begins in the file of a device; the uAPI leaves that to drivers. */
#define VGPU_REGION_SHIFT	32
#define VGPU_REGION_AT(region)	((u64)(region) << VGPU_REGION_SHIFT)

struct vgpu_mdev {
	struct vfio_device vdev; /* first, so that it is allocated with it */
	const struct vgpu_type *type;
	struct mutex lock; /* of what the VM writes */
	u8 config[PCI_CFG_SPACE_SIZE];
	u8 bar[VGPU_BAR_SIZE];
};

static struct vgpu_mdev *to_mdev(struct vfio_device *vdev)
{
	return container_of(vdev, struct vgpu_mdev, vdev);
}

/* What a VM can change in the configuration space: these bits. */
static u8 vgpu_config_writable(unsigned int at)
{
	switch (at) {
	case PCI_COMMAND:
		return PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	case PCI_BASE_ADDRESS_0 ... PCI_BASE_ADDRESS_0 + 3:
		return ~(VGPU_BAR_SIZE - 1) >> 8 * (at - PCI_BASE_ADDRESS_0);
	case PCI_INTERRUPT_LINE:
		return 0xff;
	default:
		return 0;
	}
}

/* As after a power cycle. */
static void vgpu_mdev_reset(struct vgpu_mdev *m)
{
	memset(m->config, 0, sizeof(m->config));
	memset(m->bar, 0, sizeof(m->bar));
	*(__le16 *)&m->config[PCI_VENDOR_ID] = cpu_to_le16(VGPU_GUEST_VENDOR);
	*(__le16 *)&m->config[PCI_DEVICE_ID] = cpu_to_le16(VGPU_GUEST_DEVICE);
	*(__le16 *)&m->config[PCI_CLASS_DEVICE] = cpu_to_le16(PCI_CLASS_DISPLAY_3D);
	*(__le16 *)&m->config[PCI_SUBSYSTEM_VENDOR_ID] = cpu_to_le16(VGPU_GUEST_VENDOR);
	*(__le16 *)&m->config[PCI_SUBSYSTEM_ID] = cpu_to_le16(m->type->id);
}

/* The bytes of a region, NULL for one that the device does not have. */
static u8 *vgpu_region(struct vgpu_mdev *m, unsigned int region, size_t *size)
{
	switch (region) {
	case VFIO_PCI_BAR0_REGION_INDEX:
		*size = sizeof(m->bar);
		return m->bar;
	case VFIO_PCI_CONFIG_REGION_INDEX:
		*size = sizeof(m->config);
		return m->config;
	default:
		*size = 0;
		return NULL;
	}
}

/* Where an access begins, and how much of it is within its region. */
static u8 *vgpu_access(struct vgpu_mdev *m, loff_t pos, size_t *count)
{
	u64 offset = pos & (VGPU_REGION_AT(1) - 1);
	size_t size;
	u8 *region = vgpu_region(m, pos >> VGPU_REGION_SHIFT, &size);

	if (offset >= size)
		return NULL;
	*count = min_t(u64, *count, size - offset);
	return region + offset;
}

static ssize_t vgpu_mdev_read(struct vfio_device *vdev, char __user *buf,
			      size_t count, loff_t *ppos)
{
	struct vgpu_mdev *m = to_mdev(vdev);
	u8 *from = vgpu_access(m, *ppos, &count);

	if (!from)
		return -EINVAL;
	guard(mutex)(&m->lock);
	if (copy_to_user(buf, from, count))
		return -EFAULT;
	*ppos += count;
	return count;
}

static ssize_t vgpu_mdev_write(struct vfio_device *vdev, const char __user *buf,
			       size_t count, loff_t *ppos)
{
	struct vgpu_mdev *m = to_mdev(vdev);
	u8 *to = vgpu_access(m, *ppos, &count);
	u8 news[PCI_CFG_SPACE_SIZE];
	size_t i;

	if (!to)
		return -EINVAL;
	count = min(count, sizeof(news));
	if (copy_from_user(news, buf, count))
		return -EFAULT;
	guard(mutex)(&m->lock);
	for (i = 0; i < count; i++) {
		u8 bits = 0xff;

		if (*ppos >> VGPU_REGION_SHIFT == VFIO_PCI_CONFIG_REGION_INDEX)
			bits = vgpu_config_writable(to - m->config + i);
		to[i] = (to[i] & ~bits) | (news[i] & bits);
	}
	*ppos += count;
	return count;
}

static long vgpu_device_info(void __user *arg)
{
	const size_t known = offsetofend(struct vfio_device_info, num_irqs);
	struct vfio_device_info info;

	if (copy_from_user(&info, arg, known))
		return -EFAULT;
	if (info.argsz < known)
		return -EINVAL;
	info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
	info.num_regions = VFIO_PCI_NUM_REGIONS;
	info.num_irqs = VFIO_PCI_NUM_IRQS;
	return copy_to_user(arg, &info, known) ? -EFAULT : 0;
}

static long vgpu_region_info(struct vgpu_mdev *m, void __user *arg)
{
	const size_t known = offsetofend(struct vfio_region_info, offset);
	struct vfio_region_info info;
	size_t size;

	if (copy_from_user(&info, arg, known))
		return -EFAULT;
	if (info.argsz < known || info.index >= VFIO_PCI_NUM_REGIONS)
		return -EINVAL;
	vgpu_region(m, info.index, &size);
	info.flags = size ? VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE : 0;
	info.cap_offset = 0;
	info.size = size;
	info.offset = VGPU_REGION_AT(info.index);
	return copy_to_user(arg, &info, known) ? -EFAULT : 0;
}

static long vgpu_irq_info(void __user *arg)
{
	const size_t known = offsetofend(struct vfio_irq_info, count);
	struct vfio_irq_info info;

	if (copy_from_user(&info, arg, known))
		return -EFAULT;
	if (info.argsz < known || info.index >= VFIO_PCI_NUM_IRQS)
		return -EINVAL;
	info.flags = 0;
	info.count = 0;
	return copy_to_user(arg, &info, known) ? -EFAULT : 0;
}

/* There is none to set: what can be had is that all of them are off. */
static long vgpu_set_irqs(void __user *arg)
{
	struct vfio_irq_set set;

	if (copy_from_user(&set, arg, sizeof(set)))
		return -EFAULT;
	if (set.argsz < sizeof(set) || set.index >= VFIO_PCI_NUM_IRQS || set.count)
		return -EINVAL;
	return 0;
}

static long vgpu_mdev_ioctl(struct vfio_device *vdev, unsigned int cmd, unsigned long arg)
{
	struct vgpu_mdev *m = to_mdev(vdev);

	switch (cmd) {
	case VFIO_DEVICE_GET_INFO:
		return vgpu_device_info((void __user *)arg);
	case VFIO_DEVICE_GET_REGION_INFO:
		return vgpu_region_info(m, (void __user *)arg);
	case VFIO_DEVICE_GET_IRQ_INFO:
		return vgpu_irq_info((void __user *)arg);
	case VFIO_DEVICE_SET_IRQS:
		return vgpu_set_irqs((void __user *)arg);
	case VFIO_DEVICE_RESET: {
		guard(mutex)(&m->lock);
		vgpu_mdev_reset(m);
		return 0;
	}
	default:
		return -ENOTTY;
	}
}

/* Up to Linux 6.1 a device frees itself; since then this has to do nothing. */
static void vgpu_mdev_release(struct vfio_device *vdev)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	vfio_free_device(vdev);
#endif
}

static const struct vfio_device_ops vgpu_mdev_ops = {
	.name = "nvidia-vgpu-vfio",
	.release = vgpu_mdev_release,
	.read = vgpu_mdev_read,
	.write = vgpu_mdev_write,
	.ioctl = vgpu_mdev_ioctl,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
#endif
};

/* Makes the device of an mdev, not yet registered. */
struct vfio_device *vgpu_device_make(struct device *dev, const struct vgpu_type *type)
{
	struct vgpu_mdev *m = vfio_alloc_device(vgpu_mdev, vdev, dev, &vgpu_mdev_ops);

	if (IS_ERR(m))
		return ERR_CAST(m);
	m->type = type;
	mutex_init(&m->lock);
	vgpu_mdev_reset(m);
	return &m->vdev;
}
