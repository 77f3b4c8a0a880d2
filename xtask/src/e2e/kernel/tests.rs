use super::load_order;

const INDEX: &str = "\
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/drivers/virtio/virtio.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio_ring.ko.xz kernel/drivers/virtio/virtio.ko.xz
kernel/crypto/crc32c-generic.ko:
";

#[test]
fn a_module_comes_after_what_it_needs_and_only_once() {
    let order: Vec<&str> = load_order(INDEX, &["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"])
        .into_iter()
        .filter_map(|path| path.rsplit('/').next())
        .collect();
    assert_eq!(
        order,
        ["virtio.ko.xz", "virtio_ring.ko.xz", "virtio_pci.ko.xz", "virtio_blk.ko.xz", "crc32c-generic.ko"]
    );
}
