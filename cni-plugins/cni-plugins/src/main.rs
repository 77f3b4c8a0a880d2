//! All CNI plugins in one executable: see [`cni_plugins::programs`].

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;

/// musl's own allocator asks the kernel for a few pages at a time and gives them back: eighty calls in a process of 2 ms.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    cni_plugins::programs::main()
}
