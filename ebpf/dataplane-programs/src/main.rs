//! The BPF programs of the load balancer. Built by `cargo xtask build-ebpf` for the BPF target.
//!
//! A service is translated once, when a socket connects or sends (`sockets`), so no packet between pods is ever touched.
//! Packets that cross an uplink are translated there (`uplink`): node ports on the way in, pods' own traffic on the way out.
//! Where the driver has XDP, and user space wants that, packets of known flows go on before all of this (`accelerate`).
//! What NetworkPolicies select is judged at the link of its pod (`policy`), and there services are found by packets that no socket made (`bypass`).
#![no_std]
#![no_main]
// The library's atomics have no addition here: it takes this target for one without.
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(internal_features, reason = "there is no other way to the kernel's atomic addition")]

mod accelerate;
mod bypass;
mod collision;
mod direct_return;
mod ended;
mod maps;
mod packet;
mod policy;
mod select;
mod sockets;
mod tries;
mod uplink;

/// Helpers such as `bpf_set_retval` are for GPL-compatible programs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: no program can reach a panic: there is no unwrap, indices are below the lengths of their arrays, and what is divided by is looked at before. The linker drops this.
    unsafe { core::hint::unreachable_unchecked() }
}
