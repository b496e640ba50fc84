// SPDX-License-Identifier: GPL-2.0
/* What the virtual functions of a card share: its memory, and the types of vGPUs. */

#include <linux/module.h>
#include <linux/string.h>

#include "gpuvirt_vgpu.h"

static char *flavour = "vfio";
module_param(flavour, charp, 0444);
MODULE_PARM_DESC(flavour, "vfio: a function takes a type; mdev: it is a parent of mediated devices");

static bool mixed;
module_param(mixed, bool, 0644);
MODULE_PARM_DESC(mixed, "vGPUs of different sizes may share a card");

static int rival;
module_param(rival, int, 0644);
MODULE_PARM_DESC(rival, "just before the next type is written, somebody gives this one to another function");

static bool rival_here;
module_param(rival_here, bool, 0644);
MODULE_PARM_DESC(rival_here, "it is the same function that the rival takes");

/* An id begins others, a name ends others: neither may be taken for them. */
const struct vgpu_type vgpu_types[VGPU_TYPES] = {
	{ 114, 4, "NVIDIA LAB-4C" },
	{ 1144, 1, "NVIDIA LAB-1Q" },
	{ 1145, 2, "NVIDIA LAB-2Q" },
	{ 1146, 4, "NVIDIA LAB-4Q" },
	{ 1147, 8, "NVIDIA LAB-8Q" },
	{ 1148, 16, "NVIDIA LAB-16Q" },
	{ 1149, 8, "NVIDIA LAB-8C" },
};

/* Not in modalias: it is for scenarios to load this. */
const struct pci_device_id vgpu_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_INTEL, 0x5845) },
	{ }
};

static LIST_HEAD(vgpu_vfs);
DEFINE_MUTEX(vgpu_lock);

void vgpu_add(struct vgpu_vf *vf, struct pci_dev *pdev)
{
	vf->pdev = pdev;
	guard(mutex)(&vgpu_lock);
	list_add_tail(&vf->node, &vgpu_vfs);
}

void vgpu_forget(struct vgpu_vf *vf)
{
	guard(mutex)(&vgpu_lock);
	list_del(&vf->node);
}

const struct vgpu_type *vgpu_find_type(int id)
{
	int i;

	for (i = 0; i < VGPU_TYPES; i++)
		if (vgpu_types[i].id == id)
			return &vgpu_types[i];
	return NULL;
}

/*
 * Where a vGPU would begin on the card. Each begins at a multiple of its size, so
 * that memory can be free and yet be of no use where sizes are mixed.
 */
int vgpu_place(struct vgpu_vf *vf, const struct vgpu_type *type)
{
	struct pci_dev *card = pci_physfn(vf->pdev);
	unsigned long used = 0;
	struct vgpu_vf *other;
	unsigned int start;

	lockdep_assert_held(&vgpu_lock);
	list_for_each_entry(other, &vgpu_vfs, node) {
		if (!other->type || pci_physfn(other->pdev) != card)
			continue;
		if (!mixed && other->type->gb != type->gb)
			return -ENOSPC;
		used |= GENMASK(other->start + other->type->gb - 1, other->start);
	}
	for (start = 0; start < VGPU_CARD_GB; start += type->gb)
		if (!(used & GENMASK(start + type->gb - 1, start)))
			return start;
	return -ENOSPC;
}

/* Gives a function that has none a vGPU; without a type there is no such type. */
int vgpu_give(struct vgpu_vf *vf, const struct vgpu_type *type)
{
	int start = type ? vgpu_place(vf, type) : -ENODEV;

	if (start < 0) {
		pci_err(vf->pdev, "cannot make a vGPU: %s\n",
			type ? "no place of its size" : "no such type");
		return start;
	}
	vf->type = type;
	vf->start = start;
	return 0;
}

/* Somebody who was quicker than the one who is writing a type of vf. */
void vgpu_rival(struct vgpu_vf *vf)
{
	const struct vgpu_type *type = vgpu_find_type(rival);
	struct vgpu_vf *other;

	lockdep_assert_held(&vgpu_lock);
	rival = 0;
	if (!type)
		return;
	list_for_each_entry(other, &vgpu_vfs, node) {
		if (other->type || pci_physfn(other->pdev) != pci_physfn(vf->pdev) ||
		    (other == vf) != rival_here)
			continue;
		vgpu_give(other, type);
		return;
	}
}

static bool is_mdev;

static int __init vgpu_init(void)
{
	is_mdev = !strcmp(flavour, "mdev");
	if (!is_mdev && strcmp(flavour, "vfio"))
		return -EINVAL;
	return is_mdev ? vgpu_mdev_init() : vgpu_vfio_init();
}
module_init(vgpu_init);

static void __exit vgpu_exit(void)
{
	if (is_mdev)
		vgpu_mdev_exit();
	else
		vgpu_vfio_exit();
}
module_exit(vgpu_exit);

MODULE_DESCRIPTION("vGPUs on virtual functions without a GPU, for gpuvirt's lab");
MODULE_AUTHOR("gpuvirt");
MODULE_LICENSE("GPL");
