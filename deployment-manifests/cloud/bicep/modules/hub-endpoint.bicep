// What a cloud-aggregator needs that reads the built-in endpoint of an IoT Hub: the endpoint's connection string, in the vault. The hub is
// there already, with its devices. Its policy `service` may read what devices send and call them, and cannot change the registry of
// devices: the hub has no narrower one.

@description('The IoT Hub, in this resource group.')
param hubName string

@description('The vault, which the secret goes into.')
param vaultName string

resource hub 'Microsoft.Devices/IotHubs@2023-06-30' existing = {
  name: hubName
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' existing = {
  name: vaultName
}

var events = hub.properties.eventHubEndpoints.events
var key = listKeys(resourceId('Microsoft.Devices/IotHubs/iotHubKeys', hubName, 'service'), '2023-06-30').primaryKey

resource connection 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: 'hub-endpoint-connection'
  properties: {
    contentType: 'connection string'
    value: 'Endpoint=${events.endpoint};SharedAccessKeyName=service;SharedAccessKey=${key};EntityPath=${events.path}'
  }
}

@description('Host of the Kafka endpoint, port 9093.')
output host string = replace(replace(events.endpoint, 'sb://', ''), '/', '')

@description('Event Hub-compatible name: the topic.')
output topic string = events.path
