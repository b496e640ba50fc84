// SPDX-License-Identifier: GPL-2.0
/*
 * vGPUs as NVIDIA's driver makes them of cards with SR-IOV where it still has mdevs:
 * each virtual function is a parent on the bus of mediated devices and takes one. The
 * driver is called as NVIDIA's, as the bus calls the types by it.
 */

#include <linux/mdev.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/vfio.h>

#include "gpuvirt_vgpu.h"

struct vgpu_parent {
	struct vgpu_vf vf;
	struct mdev_parent mdevs;
	struct mdev_type types[VGPU_TYPES];
	struct mdev_type *list[VGPU_TYPES];
	char names[VGPU_TYPES][8];
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
	struct vfio_device *device;
	int ret;

	ret = vgpu_mdev_give(p, type);
	if (ret)
		return ret;
	device = vgpu_device_make(&mdev->dev, type);
	if (IS_ERR(device)) {
		vgpu_take_back(p);
		return PTR_ERR(device);
	}
	dev_set_drvdata(&mdev->dev, device);
	ret = vfio_register_emulated_iommu_dev(device);
	if (ret) {
		vfio_put_device(device);
		vgpu_take_back(p);
	}
	return ret;
}

static void vgpu_mdev_remove(struct mdev_device *mdev)
{
	struct vfio_device *device = dev_get_drvdata(&mdev->dev);

	vfio_unregister_group_dev(device); /* waits for a VM to close it */
	vfio_put_device(device);
	vgpu_take_back(to_parent(mdev->type));
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
