"""The command ``irlops``. ``main`` mounts one small module per command and imports it only when that command runs."""
