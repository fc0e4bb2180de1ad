// The topics: a namespace of Event Hubs with the Kafka endpoint (Standard; Basic has none), one event hub for each topic.
//
// The cloud-aggregator reads with a connection string, since its Kafka client knows no tokens for reading; it may listen, and send only
// where outcomes are reported through it. Alerts it sends with a token of its identity, to the one event hub of alerts.
// Consumer groups of Kafka clients are made by the clients; those of Event Hubs are other ones, and the Logic App brings its own.

@description('Where it is.')
param location string

@description('Name of the namespace.')
@minLength(6)
@maxLength(50)
param namespaceName string

@description('Throughput units: 1 MB or 1,000 events a second in, twice as much out, each.')
param capacity int

@description('Throughput units that it may grow to by itself.')
param capacityMax int

@description('Partitions of each topic of readings: four for each instance of the cloud-aggregator.')
@minValue(1)
@maxValue(32)
param readingPartitions int

@description('How long records are kept, in hours: how long the cloud-aggregator may be away.')
@minValue(1)
@maxValue(168)
param retentionHours int

@description('Whether outcomes are reported to the cloud-aggregator, which writes them to their topic.')
param takesOutcomes bool

@description('Principal that sends alerts.')
param senderPrincipalId string

@description('Whether that principal may also read with tokens. Not needed as long as the cloud-aggregator reads with a connection string.')
param grantReceiver bool = false

// Built-in roles Azure Event Hubs Data Sender and Azure Event Hubs Data Receiver.
var dataSender = '2b629674-e913-4c01-ae53-ef4638d8f975'
var dataReceiver = 'a638d3c7-ab3a-418d-83e6-5f17a39d4fde'

// Standard has ten event hubs a namespace at most.
var inputs = [
  { name: 'temperature', partitions: readingPartitions }
  { name: 'pressure', partitions: readingPartitions }
  { name: 'vibration', partitions: readingPartitions }
  { name: 'machine-events', partitions: 4 }
  { name: 'dead-letters', partitions: 4 }
  { name: 'outcomes', partitions: 4 }
  { name: 'waveforms', partitions: 4 }
]

resource namespace 'Microsoft.EventHub/namespaces@2024-01-01' = {
  name: namespaceName
  location: location
  sku: {
    name: 'Standard'
    tier: 'Standard'
    capacity: capacity
  }
  properties: {
    kafkaEnabled: true
    isAutoInflateEnabled: true
    maximumThroughputUnits: capacityMax
    minimumTlsVersion: '1.2'
    // The two connection strings below.
    disableLocalAuth: false
  }
}

resource inputHubs 'Microsoft.EventHub/namespaces/eventhubs@2024-01-01' = [
  for input in inputs: {
    parent: namespace
    name: input.name
    properties: {
      partitionCount: input.partitions
      retentionDescription: {
        cleanupPolicy: 'Delete'
        retentionTimeInHours: retentionHours
      }
    }
  }
]

resource alerts 'Microsoft.EventHub/namespaces/eventhubs@2024-01-01' = {
  parent: namespace
  name: 'alerts'
  properties: {
    partitionCount: 4
    retentionDescription: {
      cleanupPolicy: 'Delete'
      retentionTimeInHours: retentionHours
    }
  }
}

resource reads 'Microsoft.EventHub/namespaces/authorizationRules@2024-01-01' = {
  parent: namespace
  name: 'cloud-aggregator'
  properties: {
    rights: takesOutcomes ? ['Listen', 'Send'] : ['Listen']
  }
}

// Gateways are no part of Azure and have no identity there.
resource edge 'Microsoft.EventHub/namespaces/authorizationRules@2024-01-01' = {
  parent: namespace
  name: 'edge-modules'
  properties: {
    rights: ['Send']
  }
}

resource maySend 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(alerts.id, senderPrincipalId, dataSender)
  scope: alerts
  properties: {
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataSender)
    principalId: senderPrincipalId
    principalType: 'ServicePrincipal'
  }
}

resource mayReceive 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for (input, index) in inputs: if (grantReceiver) {
    name: guid(namespace.id, input.name, senderPrincipalId, dataReceiver)
    scope: inputHubs[index]
    properties: {
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', dataReceiver)
      principalId: senderPrincipalId
      principalType: 'ServicePrincipal'
    }
  }
]

@description('The namespace.')
output namespaceName string = namespace.name

@description('Host of its Kafka endpoint, port 9093.')
output host string = '${namespaceName}.servicebus.windows.net'

@description('The rule whose connection string the cloud-aggregator reads with.')
output readRuleName string = reads.name
