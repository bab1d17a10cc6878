"""What turns one bundle into another: found on the build host, applied on the device. docs/bundle-format.md has the
file."""
