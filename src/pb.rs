//! Generated code of etcd's protocol (`proto/`). Lints are relaxed here and nowhere else.
