# What Vagrant itself makes of a directory's Vagrantfile, as JSON on standard output. Starts nothing.
require "json"
require "vagrant"

env = Vagrant::Environment.new(cwd: ARGV.fetch(0), ui_class: Vagrant::UI::Silent)
boxes = env.machine_names.map do |name|
  machine = env.machine(name, :libvirt)
  provider, vm = machine.provider_config, machine.config.vm
  {
    name: name, hostname: vm.hostname, cpus: provider.cpus, memory_mb: provider.memory, nested: provider.nested,
    cpu_mode: provider.cpu_mode, watchdog: provider.watchdog_dev,
    networks: vm.networks.select { |kind, _| kind == :private_network }.map { |_, options| options },
    provisioners: vm.provisioners.map { |each| [each.type, each.config.path] },
  }
end
puts JSON.generate(boxes)
