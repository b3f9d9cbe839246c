"""The Debian package of the firmware, its parts list and the application bundle: ``./build.sh deb``, on any workstation."""
