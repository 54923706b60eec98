"""What runs inside a pretended host of `two_hosts`: started by its path, with the standard library alone.

It speaks rtnetlink itself (https://man7.org/linux/man-pages/man7/rtnetlink.7.html), so that the tool ``ip``,
which small images lack, is not needed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

RTM_NEWLINK, RTM_NEWADDR = 16, 20
REQUEST, ACK, EXCLUSIVE, CREATE = 0x1, 0x4, 0x200, 0x400  # NLM_F_…
IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_PID = 3, 18, 19
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFF_UP = 0x1
MS_BIND = 4096

LINK = "link"  # the cable's end has this name on both hosts


def hold(name: str, hosts_file: str) -> None:
    """Be the first process of a host: name it, say ``ready``, and live until the standard input is closed.

    The kernel ends all processes of the host together with this one.
    """
    socket.sethostname(name)
    _mount(hosts_file, "/etc/hosts", None, MS_BIND)
    _mount("proc", "/proc", "proc", 0)  # the processes of this host, by the numbers that they have here
    set_link("lo", up=True)
    print("ready", flush=True)
    sys.stdin.read()


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def connect(peer: int) -> None:
    """Lay a veth pair from this network namespace to that of the process `peer`."""
    other_end = _link_message() + _attribute(IFLA_IFNAME, LINK.encode()) + _attribute(IFLA_NET_NS_PID, struct.pack("=I", peer))
    kind = _attribute(IFLA_INFO_KIND, b"veth") + _attribute(IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, other_end))
    message = _link_message() + _attribute(IFLA_IFNAME, LINK.encode()) + _attribute(IFLA_LINKINFO, kind)
    _request(RTM_NEWLINK, CREATE | EXCLUSIVE, message)


def set_link(name: str, *, up: bool) -> None:
    """Switch a network interface on or off."""
    _request(RTM_NEWLINK, 0, _link_message(socket.if_nametoindex(name), IFF_UP if up else 0, IFF_UP))


def set_address(address: str, prefix: int) -> None:
    """Give this host's end of the cable an IPv4 address, and switch it on."""
    packed = socket.inet_aton(address)
    message = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(LINK))
    _request(RTM_NEWADDR, CREATE | EXCLUSIVE, message + _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed))
    set_link(LINK, up=True)


def _link_message(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    """Return a struct ifinfomsg."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)


def _attribute(kind: int, value: bytes) -> bytes:
    """Return a struct rtattr with its value, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _request(kind: int, flags: int, message: bytes) -> None:
    """Send one request to the kernel and raise OSError when it is refused."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("=IHHII", 16 + len(message), kind, REQUEST | ACK | flags, 1, 0) + message)
        (code,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    if code:
        raise OSError(-code, os.strerror(-code))


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    match arguments:
        case ["hold", name, hosts_file]:
            hold(name, hosts_file)
        case ["connect", peer]:
            connect(int(peer))
        case ["address", address, prefix]:
            set_address(address, int(prefix))
        case ["cut"]:
            set_link(LINK, up=False)
        case _:
            raise SystemExit(f"unknown arguments: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
