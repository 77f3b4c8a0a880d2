//! Safe wrappers of the Linux interfaces that Orlop uses. All raw system calls of the workspace live here.

pub mod machine;
