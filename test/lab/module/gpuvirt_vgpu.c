// SPDX-License-Identifier: GPL-2.0
/*
 * The host's side of a card that offers vGPUs through its virtual functions, with
 * no GPU behind it. Each function that it drives gets a folder nvidia/ in sysfs, as
 * NVIDIA's driver makes it on kernels that have no mdevs for it. A function that
 * was given a type is a VFIO device that a VM can open.
 *
 * It takes the virtual functions of QEMU's NVMe controller with Intel's id. nvme may
 * be asked first and fails, as they are offline. Those of any other card can be
 * bound with driver_override; the physical function keeps its driver.
 */

#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sysfs.h>
#include <linux/version.h>
#include <linux/vfio_pci_core.h>

#define VGPU_DRIVER	"gpuvirt_vgpu"
#define VGPU_CARD_GB	16
#define VGPU_PARAMS_MAX	1024

/* What cards tell that are not cut into instances. */
#define VGPU_NO_INSTANCE	U32_MAX

static bool mixed;
module_param(mixed, bool, 0644);
MODULE_PARM_DESC(mixed, "vGPUs of different sizes may share a card");

static unsigned int sticky_ms;
module_param(sticky_ms, uint, 0644);
MODULE_PARM_DESC(sticky_ms, "for so long after a VM has closed a function, its type cannot be cleared");

static bool rfc_errors;
module_param(rfc_errors, bool, 0644);
MODULE_PARM_DESC(rfc_errors, "answer with the errors of the driver proposed upstream");

struct vgpu_type {
	int id;
	unsigned int gb;
	const char *name;
};

/* An id begins others, a name ends others: neither may be taken for them. */
static const struct vgpu_type vgpu_types[] = {
	{ 114, 4, "NVIDIA LAB-4C" },
	{ 1144, 1, "NVIDIA LAB-1Q" },
	{ 1145, 2, "NVIDIA LAB-2Q" },
	{ 1146, 4, "NVIDIA LAB-4Q" },
	{ 1147, 8, "NVIDIA LAB-8Q" },
	{ 1148, 16, "NVIDIA LAB-16Q" },
	{ 1149, 8, "NVIDIA LAB-8C" },
};

struct vgpu_vf {
	struct vfio_pci_core_device core; /* first: drvdata is both */
	struct list_head node;
	const struct vgpu_type *type; /* NULL: no vGPU */
	unsigned int start; /* of its memory on the card, in GB */
	bool opened;
	bool stuck; /* for a while, although a VM has closed it */
	unsigned long stuck_until; /* in jiffies */
	char params[VGPU_PARAMS_MAX];
};

/* All functions of all cards, and what they are given. */
static LIST_HEAD(vgpu_vfs);
static DEFINE_MUTEX(vgpu_lock);

static struct vgpu_vf *to_vf(struct device *dev)
{
	return dev_get_drvdata(dev);
}

static const struct vgpu_type *vgpu_find_type(int id)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(vgpu_types); i++)
		if (vgpu_types[i].id == id)
			return &vgpu_types[i];
	return NULL;
}

/*
 * Where a vGPU would begin on the card. Each begins at a multiple of its size, so
 * that memory can be free and yet be of no use where sizes are mixed.
 */
static int vgpu_place(struct vgpu_vf *vf, const struct vgpu_type *type)
{
	struct pci_dev *card = pci_physfn(vf->core.pdev);
	unsigned long used = 0;
	struct vgpu_vf *other;
	unsigned int start;

	lockdep_assert_held(&vgpu_lock);
	list_for_each_entry(other, &vgpu_vfs, node) {
		if (!other->type || pci_physfn(other->core.pdev) != card)
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

static bool vgpu_stuck(struct vgpu_vf *vf)
{
	return vf->stuck && time_before(jiffies, vf->stuck_until);
}

static int vgpu_set(struct vgpu_vf *vf, int id)
{
	const struct vgpu_type *type = vgpu_find_type(id);
	int start;

	if (rfc_errors) {
		if (vf->opened)
			return -EBUSY;
		if (!type)
			return -ENODEV;
		if (vf->type)
			return vf->type == type ? 0 : -EINVAL;
	} else if (vf->type) {
		return -EPERM;
	}

	start = type ? vgpu_place(vf, type) : -ENODEV;
	if (start < 0) {
		pci_err(vf->core.pdev, "cannot make a vGPU of type %d: %s\n", id,
			type ? "no place of its size" : "no such type");
		return rfc_errors ? start : -EIO;
	}
	vf->type = type;
	vf->start = start;
	return 0;
}

static int vgpu_clear(struct vgpu_vf *vf)
{
	if (!vf->type)
		return rfc_errors ? 0 : -EPERM;
	if (vf->opened || vgpu_stuck(vf)) {
		pci_err(vf->core.pdev, "cannot remove the vGPU: it is in use\n");
		return -EBUSY;
	}
	vf->type = NULL;
	vf->stuck = false;
	vf->params[0] = '\0';
	return 0;
}

static ssize_t creatable_vgpu_types_show(struct device *dev,
					 struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);
	int len = 0;
	int i;

	guard(mutex)(&vgpu_lock);
	if (!vf->type || !rfc_errors)
		len += sysfs_emit_at(buf, len, "ID    : vGPU Name\n");
	for (i = 0; !vf->type && i < ARRAY_SIZE(vgpu_types); i++)
		if (vgpu_place(vf, &vgpu_types[i]) >= 0)
			len += sysfs_emit_at(buf, len, "%-5d : %s\n",
					     vgpu_types[i].id, vgpu_types[i].name);
	return len;
}
static DEVICE_ATTR_RO(creatable_vgpu_types);

static ssize_t current_vgpu_type_show(struct device *dev,
				      struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);

	guard(mutex)(&vgpu_lock);
	return sysfs_emit(buf, "%d\n", vf->type ? vf->type->id : 0);
}

static ssize_t current_vgpu_type_store(struct device *dev,
				       struct device_attribute *attr,
				       const char *buf, size_t count)
{
	struct vgpu_vf *vf = to_vf(dev);
	int id;
	int ret;

	ret = kstrtoint(buf, 10, &id);
	if (ret)
		return ret;
	guard(mutex)(&vgpu_lock);
	ret = id ? vgpu_set(vf, id) : vgpu_clear(vf);
	return ret ? ret : count;
}
static DEVICE_ATTR_RW(current_vgpu_type);

static ssize_t vgpu_params_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);

	guard(mutex)(&vgpu_lock);
	return vf->type ? sysfs_emit(buf, "%s\n", vf->params) : -ENXIO;
}

static ssize_t vgpu_params_store(struct device *dev,
				 struct device_attribute *attr,
				 const char *buf, size_t count)
{
	struct vgpu_vf *vf = to_vf(dev);

	guard(mutex)(&vgpu_lock);
	if (count > sizeof(vf->params))
		return -E2BIG;
	if (!vf->type)
		return -ENXIO;
	if (vf->opened)
		return -EPERM;
	/* The last byte is lost, whether it is a newline or not. */
	strscpy(vf->params, buf, count);
	return count;
}
static DEVICE_ATTR_RW(vgpu_params);

static ssize_t gpu_instance_id_show(struct device *dev,
				    struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);

	guard(mutex)(&vgpu_lock);
	return vf->type ? sysfs_emit(buf, "%u\n", VGPU_NO_INSTANCE) : -ENXIO;
}
static DEVICE_ATTR_RO(gpu_instance_id);

static ssize_t placement_id_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	struct vgpu_vf *vf = to_vf(dev);

	guard(mutex)(&vgpu_lock);
	return vf->type ? sysfs_emit(buf, "%u\n", vf->start) : -ENXIO;
}
static DEVICE_ATTR_RO(placement_id);

static struct attribute *vgpu_attrs[] = {
	&dev_attr_creatable_vgpu_types.attr,
	&dev_attr_current_vgpu_type.attr,
	&dev_attr_vgpu_params.attr,
	&dev_attr_gpu_instance_id.attr,
	&dev_attr_placement_id.attr,
	NULL
};

static const struct attribute_group vgpu_group = {
	.name = "nvidia",
	.attrs = vgpu_attrs,
};

static int vgpu_open_device(struct vfio_device *vdev)
{
	struct vgpu_vf *vf = container_of(vdev, struct vgpu_vf, core.vdev);
	int ret;

	guard(mutex)(&vgpu_lock);
	if (!vf->type) {
		pci_err(vf->core.pdev, "cannot open: current_vgpu_type is not set\n");
		return -ENODEV;
	}
	ret = vfio_pci_core_enable(&vf->core);
	if (ret)
		return ret;
	vfio_pci_core_finish_enable(&vf->core);
	vf->opened = true;
	return 0;
}

static void vgpu_close_device(struct vfio_device *vdev)
{
	struct vgpu_vf *vf = container_of(vdev, struct vgpu_vf, core.vdev);

	vfio_pci_core_close_device(vdev);

	guard(mutex)(&vgpu_lock);
	vf->opened = false;
	vf->stuck_until = jiffies + msecs_to_jiffies(sticky_ms);
	vf->stuck = sticky_ms > 0;
}

static const struct vfio_device_ops vgpu_vfio_ops = {
	.name = VGPU_DRIVER,
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = vgpu_open_device,
	.close_device = vgpu_close_device,
	.ioctl = vfio_pci_core_ioctl,
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
#endif
};

static int vgpu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vgpu_vf *vf;
	int ret;

	if (!pdev->is_virtfn)
		return -ENODEV;

	vf = vfio_alloc_device(vgpu_vf, core.vdev, &pdev->dev, &vgpu_vfio_ops);
	if (IS_ERR(vf))
		return PTR_ERR(vf);
	dev_set_drvdata(&pdev->dev, &vf->core);
	scoped_guard(mutex, &vgpu_lock)
		list_add_tail(&vf->node, &vgpu_vfs);

	ret = vfio_pci_core_register_device(&vf->core);
	if (ret)
		goto forget;
	ret = sysfs_create_group(&pdev->dev.kobj, &vgpu_group);
	if (ret)
		goto unregister;
	return 0;

unregister:
	vfio_pci_core_unregister_device(&vf->core);
forget:
	scoped_guard(mutex, &vgpu_lock)
		list_del(&vf->node);
	vfio_put_device(&vf->core.vdev);
	return ret;
}

static void vgpu_remove(struct pci_dev *pdev)
{
	struct vgpu_vf *vf = to_vf(&pdev->dev);

	/* Waits for a VM to close it; until then it tells its type. */
	vfio_pci_core_unregister_device(&vf->core);
	sysfs_remove_group(&pdev->dev.kobj, &vgpu_group);
	scoped_guard(mutex, &vgpu_lock)
		list_del(&vf->node);
	vfio_put_device(&vf->core.vdev);
}

/* Not in modalias: it is for scenarios to load this. */
static const struct pci_device_id vgpu_ids[] = {
	{ PCI_DEVICE(PCI_VENDOR_ID_INTEL, 0x5845) },
	{ }
};

static struct pci_driver vgpu_driver = {
	.name = VGPU_DRIVER,
	.id_table = vgpu_ids,
	.probe = vgpu_probe,
	.remove = vgpu_remove,
	.driver_managed_dma = true,
};

module_pci_driver(vgpu_driver);

MODULE_DESCRIPTION("vGPUs on virtual functions without a GPU, for gpuvirt's lab");
MODULE_AUTHOR("gpuvirt");
MODULE_LICENSE("GPL");
