"""Puts Kybernate onto a node of a cluster, and takes it away: files, and containerd's runtime handler.

    payload         which files: shim, an own Python, an own CRIU, with the libraries and the loader they need
    versions        where: a folder per version, and one link that says which is the present one
    configuration   what is written into containerd's configuration; pure
    containerd      which containerd a node has, how it is asked, started anew, and known to be back
    handler         registering the handler and taking it out, so that every moment is a good one to be killed at
    node            the whole: install, uninstall

It imports the standard library, `kybernate.errors` and the shim alone, because its second half runs on the node itself,
by the Python that its first half has put there.
"""
