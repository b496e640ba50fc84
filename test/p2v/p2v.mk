##@ Moving servers

.PHONY: p2v-image
p2v-image: bootstrap ## Build the disks of the physical server of the tests, unless they are there
	@test/p2v/deps.sh
	@test/p2v/build.sh

.PHONY: p2v-test
p2v-test: build p2v-image ## Move a physical server for real: emulated, with virt-v2v and libvirt (P2V_ARGS='-run BIOS -v')
	go test -tags p2v,$(TAGS) -count=1 -timeout 75m ./test/p2v/... $(P2V_ARGS)
