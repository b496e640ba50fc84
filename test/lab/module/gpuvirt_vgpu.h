/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The host's side of a card that offers vGPUs through its virtual functions, with
 * no GPU behind it: in either of the ways that NVIDIA's driver has for the same card.
 *
 * It takes the virtual functions of QEMU's NVMe controller with Intel's id. nvme may
 * be asked first and fails, as they are offline. Those of any other card can be
 * bound with driver_override; the physical function keeps its driver.
 */
#ifndef GPUVIRT_VGPU_H
#define GPUVIRT_VGPU_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#define VGPU_CARD_GB	16

struct vgpu_type {
	int id;
	unsigned int gb;
	const char *name;
};

#define VGPU_TYPES	7
extern const struct vgpu_type vgpu_types[VGPU_TYPES];

/* A virtual function, and what it was given. */
struct vgpu_vf {
	struct pci_dev *pdev;
	struct list_head node;
	const struct vgpu_type *type; /* NULL: no vGPU */
	unsigned int start; /* of its memory on the card, in GB */
};

/* Over all functions of all cards. */
extern struct mutex vgpu_lock;

/* card.c; place, give and rival want the lock, add and forget take it. */
void vgpu_add(struct vgpu_vf *vf, struct pci_dev *pdev);
void vgpu_forget(struct vgpu_vf *vf);
const struct vgpu_type *vgpu_find_type(int id);
int vgpu_place(struct vgpu_vf *vf, const struct vgpu_type *type);
int vgpu_give(struct vgpu_vf *vf, const struct vgpu_type *type);
void vgpu_rival(struct vgpu_vf *vf);

/* The functions that either way takes. */
extern const struct pci_device_id vgpu_ids[];

/* vfio.c: the driver of a function is its VFIO driver. */
int vgpu_vfio_init(void);
void vgpu_vfio_exit(void);

/* mdev.c: a function is a parent on the bus of mediated devices. */
int vgpu_mdev_init(void);
void vgpu_mdev_exit(void);

/* device.c */
struct vfio_device *vgpu_device_make(struct device *dev, const struct vgpu_type *type);

#endif
