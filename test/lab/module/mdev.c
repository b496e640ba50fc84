// SPDX-License-Identifier: GPL-2.0
/*
 * vGPUs as NVIDIA's driver makes them of cards with SR-IOV where it still has mdevs:
 * each virtual function is a parent on the bus of mediated devices and takes one. The
 * driver is called as NVIDIA's, as the bus calls the types by it. What a VM sees of
 * an mdev is a PCI device of our own with a page of memory that it can read and
 * write, and without interrupts.
 */

#include <linux/mdev.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
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

struct vgpu_parent {
	struct vgpu_vf vf;
	struct mdev_parent mdevs;
	struct mdev_type types[VGPU_TYPES];
	struct mdev_type *list[VGPU_TYPES];
	char names[VGPU_TYPES][8];
};

struct vgpu_mdev {
	struct vfio_device vdev; /* first, so that it is allocated with it */
	struct vgpu_parent *parent;
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
static void vgpu_mdev_reset(struct vgpu_mdev *m, const struct vgpu_type *type)
{
	memset(m->config, 0, sizeof(m->config));
	memset(m->bar, 0, sizeof(m->bar));
	*(__le16 *)&m->config[PCI_VENDOR_ID] = cpu_to_le16(VGPU_GUEST_VENDOR);
	*(__le16 *)&m->config[PCI_DEVICE_ID] = cpu_to_le16(VGPU_GUEST_DEVICE);
	*(__le16 *)&m->config[PCI_CLASS_DEVICE] = cpu_to_le16(PCI_CLASS_DISPLAY_3D);
	*(__le16 *)&m->config[PCI_SUBSYSTEM_VENDOR_ID] = cpu_to_le16(VGPU_GUEST_VENDOR);
	*(__le16 *)&m->config[PCI_SUBSYSTEM_ID] = cpu_to_le16(type->id);
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
		vgpu_mdev_reset(m, m->parent->vf.type);
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

static struct vgpu_parent *to_parent(struct mdev_type *type)
{
	return container_of(type->parent, struct vgpu_parent, mdevs);
}

static const struct vgpu_type *to_type(struct mdev_type *type)
{
	return &vgpu_types[type - to_parent(type)->types];
}

static void vgpu_take_back(struct vgpu_parent *p)
{
	guard(mutex)(&vgpu_lock);
	p->vf.type = NULL;
}

/* NVIDIA's driver has one answer for all that it does not make. */
static int vgpu_mdev_give(struct vgpu_parent *p, const struct vgpu_type *type)
{
	guard(mutex)(&vgpu_lock);
	return p->vf.type || vgpu_give(&p->vf, type) ? -EIO : 0;
}

static int vgpu_mdev_probe(struct mdev_device *mdev)
{
	struct vgpu_parent *p = to_parent(mdev->type);
	const struct vgpu_type *type = to_type(mdev->type);
	struct vgpu_mdev *m;
	int ret;

	ret = vgpu_mdev_give(p, type);
	if (ret)
		return ret;
	m = vfio_alloc_device(vgpu_mdev, vdev, &mdev->dev, &vgpu_mdev_ops);
	if (IS_ERR(m)) {
		vgpu_take_back(p);
		return PTR_ERR(m);
	}
	m->parent = p;
	mutex_init(&m->lock);
	vgpu_mdev_reset(m, type);
	dev_set_drvdata(&mdev->dev, m);
	ret = vfio_register_emulated_iommu_dev(&m->vdev);
	if (ret) {
		vfio_put_device(&m->vdev);
		vgpu_take_back(p);
	}
	return ret;
}

static void vgpu_mdev_remove(struct mdev_device *mdev)
{
	struct vgpu_mdev *m = dev_get_drvdata(&mdev->dev);
	struct vgpu_parent *p = m->parent;

	vfio_unregister_group_dev(&m->vdev); /* waits for a VM to close it */
	vfio_put_device(&m->vdev);
	vgpu_take_back(p);
}

static unsigned int vgpu_mdev_available(struct mdev_type *type)
{
	struct vgpu_parent *p = to_parent(type);

	guard(mutex)(&vgpu_lock);
	return !p->vf.type && vgpu_place(&p->vf, to_type(type)) >= 0;
}

static ssize_t vgpu_mdev_description(struct mdev_type *type, char *buf)
{
	unsigned int gb = to_type(type)->gb;

	return sysfs_emit(buf, "num_heads=4, frl_config=60, framebuffer=%uM, max_resolution=7680x4320, max_instance=%u\n",
			  gb * 1024, VGPU_CARD_GB / gb);
}

static struct mdev_driver vgpu_mdev_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.driver = {
		.name = "nvidia-vgpu-vfio",
		.owner = THIS_MODULE,
		.mod_name = KBUILD_MODNAME,
	},
	.probe = vgpu_mdev_probe,
	.remove = vgpu_mdev_remove,
	.get_available = vgpu_mdev_available,
	.show_description = vgpu_mdev_description,
};

static int vgpu_parent_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vgpu_parent *p;
	int i, ret;

	if (!pdev->is_virtfn)
		return -ENODEV;
	p = kzalloc(sizeof(*p), GFP_KERNEL);
	if (!p)
		return -ENOMEM;
	for (i = 0; i < VGPU_TYPES; i++) {
		snprintf(p->names[i], sizeof(p->names[i]), "%d", vgpu_types[i].id);
		p->types[i].sysfs_name = p->names[i];
		p->types[i].pretty_name = vgpu_types[i].name;
		p->list[i] = &p->types[i];
	}
	vgpu_add(&p->vf, pdev);
	pci_set_drvdata(pdev, p);
	ret = mdev_register_parent(&p->mdevs, &pdev->dev, &vgpu_mdev_driver, p->list, VGPU_TYPES);
	if (ret) {
		vgpu_forget(&p->vf);
		kfree(p);
	}
	return ret;
}

static void vgpu_parent_remove(struct pci_dev *pdev)
{
	struct vgpu_parent *p = pci_get_drvdata(pdev);

	mdev_unregister_parent(&p->mdevs);
	vgpu_forget(&p->vf);
	kfree(p);
}

static struct pci_driver vgpu_parent_driver = {
	.name = "nvidia",
	.id_table = vgpu_ids,
	.probe = vgpu_parent_probe,
	.remove = vgpu_parent_remove,
};

int vgpu_mdev_init(void)
{
	int ret = mdev_register_driver(&vgpu_mdev_driver);

	if (ret)
		return ret;
	ret = pci_register_driver(&vgpu_parent_driver);
	if (ret)
		mdev_unregister_driver(&vgpu_mdev_driver);
	return ret;
}

void vgpu_mdev_exit(void)
{
	pci_unregister_driver(&vgpu_parent_driver);
	mdev_unregister_driver(&vgpu_mdev_driver);
}
