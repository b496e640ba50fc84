// SPDX-License-Identifier: GPL-2.0
/*
 * vGPUs as NVIDIA's driver makes them on kernels for which it has no mdevs: it is
 * the VFIO driver of each function, with a folder nvidia/ in sysfs. A function that
 * was given a type is a VFIO device that a VM can open.
 */

#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/sysfs.h>
#include <linux/version.h>
#include <linux/vfio_pci_core.h>

#include "gpuvirt_vgpu.h"

#define VGPU_DRIVER	"gpuvirt_vgpu"
#define VGPU_PARAMS_MAX	1024

/* What cards tell that are not cut into instances. */
#define VGPU_NO_INSTANCE	U32_MAX

static unsigned int sticky_ms;
module_param(sticky_ms, uint, 0644);
MODULE_PARM_DESC(sticky_ms, "for so long after a VM has closed a function, its type cannot be cleared");

static bool rfc_errors;
module_param(rfc_errors, bool, 0644);
MODULE_PARM_DESC(rfc_errors, "answer with the errors of the driver proposed upstream");

struct vgpu_function {
	struct vfio_pci_core_device core; /* first: drvdata is both */
	struct vgpu_vf vf;
	bool opened;
	bool stuck; /* for a while, although a VM has closed it */
	unsigned long stuck_until; /* in jiffies */
	char params[VGPU_PARAMS_MAX];
};

static struct vgpu_function *to_function(struct device *dev)
{
	return dev_get_drvdata(dev);
}

static bool vgpu_stuck(struct vgpu_function *f)
{
	return f->stuck && time_before(jiffies, f->stuck_until);
}

static int vgpu_set(struct vgpu_function *f, int id)
{
	const struct vgpu_type *type = vgpu_find_type(id);
	int ret;

	vgpu_rival(&f->vf);
	if (rfc_errors) {
		if (f->opened)
			return -EBUSY;
		if (!type)
			return -ENODEV;
		if (f->vf.type)
			return f->vf.type == type ? 0 : -EINVAL;
	} else if (f->vf.type) {
		return -EPERM;
	}
	ret = vgpu_give(&f->vf, type);
	return ret && !rfc_errors ? -EIO : ret;
}

static int vgpu_clear(struct vgpu_function *f)
{
	if (!f->vf.type)
		return rfc_errors ? 0 : -EPERM;
	if (f->opened || vgpu_stuck(f)) {
		pci_err(f->vf.pdev, "cannot remove the vGPU: it is in use\n");
		return -EBUSY;
	}
	f->vf.type = NULL;
	f->stuck = false;
	f->params[0] = '\0';
	return 0;
}

static ssize_t creatable_vgpu_types_show(struct device *dev,
					 struct device_attribute *attr, char *buf)
{
	struct vgpu_function *f = to_function(dev);
	int len = 0;
	int i;

	guard(mutex)(&vgpu_lock);
	if (!f->vf.type || !rfc_errors)
		len += sysfs_emit_at(buf, len, "ID    : vGPU Name\n");
	for (i = 0; !f->vf.type && i < VGPU_TYPES; i++)
		if (vgpu_place(&f->vf, &vgpu_types[i]) >= 0)
			len += sysfs_emit_at(buf, len, "%-5d : %s\n",
					     vgpu_types[i].id, vgpu_types[i].name);
	return len;
}
static DEVICE_ATTR_RO(creatable_vgpu_types);

static ssize_t current_vgpu_type_show(struct device *dev,
				      struct device_attribute *attr, char *buf)
{
	struct vgpu_function *f = to_function(dev);

	guard(mutex)(&vgpu_lock);
	return sysfs_emit(buf, "%d\n", f->vf.type ? f->vf.type->id : 0);
}

static ssize_t current_vgpu_type_store(struct device *dev,
				       struct device_attribute *attr,
				       const char *buf, size_t count)
{
	struct vgpu_function *f = to_function(dev);
	int id;
	int ret;

	ret = kstrtoint(buf, 10, &id);
	if (ret)
		return ret;
	guard(mutex)(&vgpu_lock);
	ret = id ? vgpu_set(f, id) : vgpu_clear(f);
	return ret ? ret : count;
}
static DEVICE_ATTR_RW(current_vgpu_type);

static ssize_t vgpu_params_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	struct vgpu_function *f = to_function(dev);

	guard(mutex)(&vgpu_lock);
	return f->vf.type ? sysfs_emit(buf, "%s\n", f->params) : -ENXIO;
}

static ssize_t vgpu_params_store(struct device *dev,
				 struct device_attribute *attr,
				 const char *buf, size_t count)
{
	struct vgpu_function *f = to_function(dev);

	guard(mutex)(&vgpu_lock);
	if (count > sizeof(f->params))
		return -E2BIG;
	if (!f->vf.type)
		return -ENXIO;
	if (f->opened)
		return -EPERM;
	/* The last byte is lost, whether it is a newline or not. */
	strscpy(f->params, buf, count);
	return count;
}
static DEVICE_ATTR_RW(vgpu_params);

static ssize_t gpu_instance_id_show(struct device *dev,
				    struct device_attribute *attr, char *buf)
{
	struct vgpu_function *f = to_function(dev);

	guard(mutex)(&vgpu_lock);
	return f->vf.type ? sysfs_emit(buf, "%u\n", VGPU_NO_INSTANCE) : -ENXIO;
}
static DEVICE_ATTR_RO(gpu_instance_id);

static ssize_t placement_id_show(struct device *dev,
				 struct device_attribute *attr, char *buf)
{
	struct vgpu_function *f = to_function(dev);

	guard(mutex)(&vgpu_lock);
	return f->vf.type ? sysfs_emit(buf, "%u\n", f->vf.start) : -ENXIO;
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
	struct vgpu_function *f = container_of(vdev, struct vgpu_function, core.vdev);
	int ret;

	guard(mutex)(&vgpu_lock);
	if (!f->vf.type) {
		pci_err(f->core.pdev, "cannot open: current_vgpu_type is not set\n");
		return -ENODEV;
	}
	ret = vfio_pci_core_enable(&f->core);
	if (ret)
		return ret;
	vfio_pci_core_finish_enable(&f->core);
	f->opened = true;
	return 0;
}

static void vgpu_close_device(struct vfio_device *vdev)
{
	struct vgpu_function *f = container_of(vdev, struct vgpu_function, core.vdev);

	vfio_pci_core_close_device(vdev);

	guard(mutex)(&vgpu_lock);
	f->opened = false;
	f->stuck_until = jiffies + msecs_to_jiffies(sticky_ms);
	f->stuck = sticky_ms > 0;
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
	struct vgpu_function *f;
	int ret;

	if (!pdev->is_virtfn)
		return -ENODEV;

	f = vfio_alloc_device(vgpu_function, core.vdev, &pdev->dev, &vgpu_vfio_ops);
	if (IS_ERR(f))
		return PTR_ERR(f);
	dev_set_drvdata(&pdev->dev, &f->core);
	vgpu_add(&f->vf, pdev);

	ret = vfio_pci_core_register_device(&f->core);
	if (ret)
		goto forget;
	ret = sysfs_create_group(&pdev->dev.kobj, &vgpu_group);
	if (ret)
		goto unregister;
	return 0;

unregister:
	vfio_pci_core_unregister_device(&f->core);
forget:
	vgpu_forget(&f->vf);
	vfio_put_device(&f->core.vdev);
	return ret;
}

static void vgpu_remove(struct pci_dev *pdev)
{
	struct vgpu_function *f = to_function(&pdev->dev);

	/* Waits for a VM to close it; until then it tells its type. */
	vfio_pci_core_unregister_device(&f->core);
	sysfs_remove_group(&pdev->dev.kobj, &vgpu_group);
	vgpu_forget(&f->vf);
	vfio_put_device(&f->core.vdev);
}

static struct pci_driver vgpu_driver = {
	.name = VGPU_DRIVER,
	.id_table = vgpu_ids,
	.probe = vgpu_probe,
	.remove = vgpu_remove,
	.driver_managed_dma = true,
};

int vgpu_vfio_init(void)
{
	return pci_register_driver(&vgpu_driver);
}

void vgpu_vfio_exit(void)
{
	pci_unregister_driver(&vgpu_driver);
}
